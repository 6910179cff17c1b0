"""Parameter-space saliency: which filters of a network are to blame for a wrong prediction (Levin et al. 2022)."""
