"""The laboratory: what makes and judges the policy that clients run."""
