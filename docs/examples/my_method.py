"""A method: FedPer whose clients are pulled towards the server's encoder, as FedProx does it."""

from spatl.methods import Method

PULLED = Method(
    title="FedPer with a pull",
    source="Arivazhagan et al. 2019, arXiv 1912.00818, and Li et al. 2020, arXiv 1812.06127",
    shares="encoder",
    proximal=True,
    defaults={"training": {"proximal_mu": 0.1, "learning_rate": 0.05}},
)
