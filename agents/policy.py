"""Policy: a small graph network with one head for all nodes, so that one set of weights serves any encoder.

It is plain PyTorch: a client runs it without a reinforcement-learning library. The order of the nodes and the padding
of a batch change nothing but the order of the result.
"""

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from agents.graph import NUM_FEATURES, Graph
from spatl.errors import SpatlError
from spatl.json_files import to_json

_HIDDEN: Final = 32
_ROUNDS: Final = 2


class GraphPolicy(nn.Module):
    """Graph network: two rounds of message passing along and against the edges, then one head for each node.

    Its outputs are the mean of a Gaussian action in [-1, 1] per node, one spread shared by all nodes, and the value
    that training uses as its baseline.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(NUM_FEATURES, _HIDDEN)
        self.rounds = nn.ModuleList(nn.Linear(4 * _HIDDEN, _HIDDEN) for _ in range(_ROUNDS))
        self.head = nn.Linear(_HIDDEN, 1)
        self.value = nn.Linear(_HIDDEN, 1)
        self.log_std = nn.Parameter(torch.tensor(-1.5))
        with torch.no_grad():  # an untrained policy is the prior
            self.head.weight.zero_()
            self.head.bias.zero_()

    def embedding(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        """Embed a batch of graphs.

        Args:
            nodes: float32 [B, G, `NUM_FEATURES`].
            edges: float32 [B, G, G], as of `Graph.edges`; zero where padded.
            mask: float32 [B, G], 1 for a node and 0 for padding.

        Returns:
            [B, G, H] in the dtype of the weights; zero where padded.
        """
        nodes, edges, mask = (tensor.to(self.head.weight.dtype) for tensor in (nodes, edges, mask))
        weight = mask.unsqueeze(-1)
        backwards = edges.transpose(1, 2)
        backwards = backwards / backwards.sum(2, keepdim=True).clamp(min=1e-6)
        features = F.relu(self.embed(nodes)) * weight
        for layer in self.rounds:
            mean = features.sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
            around = [features, edges @ features, backwards @ features, mean.expand_as(features)]
            features = (features + F.relu(layer(torch.cat(around, 2)))) * weight
        return features

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean action [B, G] and the value [B]; arguments as of `embedding`."""
        features = self.embedding(nodes, edges, mask)
        mask = mask.to(features.dtype)
        means = self.head(features).squeeze(-1) * mask
        pooled = features.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return means, self.value(pooled).squeeze(-1)

    def fingerprint(self) -> Tensor:
        """Return a digest, int64 [], of all weights but the head's; a head belongs to the others."""
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in self.state_dict().items():
            if not name.startswith("head."):
                digest.update(tensor.double().numpy().tobytes())
        return torch.tensor(int.from_bytes(digest.digest(), "little", signed=True))

    def act(self, graph: Graph) -> Tensor:
        """Return the deterministic action [G] in [-1, 1] for one graph."""
        with torch.no_grad():
            mask = torch.ones(1, len(graph.nodes))
            means, _ = self.forward(graph.nodes.unsqueeze(0), graph.edges.unsqueeze(0), mask)
            return means[0].clamp(-1, 1)


def save_policy(policy: GraphPolicy, path: Path) -> None:
    """Write a policy's weights as safetensors."""
    path.write_bytes(_to_bytes(policy))


def ship_policy(policy: GraphPolicy, path: Path) -> None:
    """Write the same safetensors as text in JSON, the form in which the package carries its policy.

    Flower's app bundles carry no binary files: in this form the policy reaches every client.
    """
    content = {"safetensors": base64.b64encode(_to_bytes(policy)).decode("ascii")}
    path.write_text(to_json(content, indent=1) + "\n", encoding="ascii")


def load_policy(path: Path | None = None) -> GraphPolicy:
    """Read a policy.

    Args:
        path: What `save_policy` wrote, or, where it ends in .json, `ship_policy`; the policy that ships with the
            package if not given.

    Raises:
        SpatlError: There is no such file, or it holds no policy of this version.

    Returns:
        The policy in float64, so that the order of a sum shows in none of its digits that matter.
    """
    if path is None:
        return _from_text((files("agents") / "policy.json").read_text(encoding="ascii"))
    try:
        if path.suffix == ".json":
            return _from_text(path.read_text(encoding="ascii"))
        return _from_bytes(path.read_bytes())
    except FileNotFoundError:
        raise SpatlError(f"policy file not found: {path} (configs: agent.policy)") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SpatlError(f"{path} holds no policy of this version (configs: agent.policy): {reason}") from error


def _to_bytes(policy: GraphPolicy) -> bytes:
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in policy.state_dict().items()}
    return bytes(save(tensors))


def _from_text(text: str) -> GraphPolicy:
    return _from_bytes(base64.b64decode(json.loads(text)["safetensors"]))


def _from_bytes(data: bytes) -> GraphPolicy:
    policy = GraphPolicy()
    policy.load_state_dict(load(data))
    if not all(bool(parameter.isfinite().all()) for parameter in policy.parameters()):
        raise ValueError("a weight is NaN or infinite")
    return policy.double().eval()
