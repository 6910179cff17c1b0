"""Limits of what a client may send, from the size of the model."""

from spatl.rounds.blueprint import Blueprint
from spatl.rounds.findings import findings_shape

_BYTES_PER_VALUE = 8  # no codec of ours writes more of a float32, escapes included
_AROUND = 64 << 10  # headers, a report, lanes and tables of a codec, Flower's records and ids


def most_bytes(blueprint: Blueprint) -> int:
    """Return how many bytes the largest message of a client may have, with all that is around it.

    That is an update of all channels, in whatever codec; statistics; findings; or what a client registers with.
    """
    layout = blueprint.layout
    num_values, num_channels = layout.num_entries, layout.num_channels
    codec = blueprint.codecs.uplink.num_bytes(num_values=num_values, num_channels=num_channels)
    update = max(codec, _BYTES_PER_VALUE * num_values) + num_channels + 8 * blueprint.num_statistics
    findings = 0
    if blueprint.config.report.findings is not None:
        shape = findings_shape(blueprint)
        filters, classes, features = shape.num_filters, shape.num_classes, shape.num_features
        findings = 16 * filters + 32 * classes + 4 * classes * (filters + features)
    return max(update, findings, 4 * num_channels) + _AROUND
