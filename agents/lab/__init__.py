"""Laboratory: pre-training and evaluation of the policy that clients run."""
