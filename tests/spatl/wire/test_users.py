"""Codecs of the user's own: numbered alike on both sides, rehearsed before a run, and compared at registration."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spatl.channels.layout import Places
from spatl.errors import ConfigError, UpdateRejected, from_outside
from spatl.rounds.blueprint import make_blueprint
from spatl.runs.records import read_lines
from spatl.seeding import generator
from spatl.wire.codecs import CODECS
from spatl.wire.update import pack_update, unpack_update
from spatl.wire.users import FIRST_NUMBER, UsersCodec, usual_rounding, wire_codecs
from tests.support.federations import blueprint_of, fingerprints, history_without_seconds, run_tiny, tiny_config
from tests.support.layouts import make_update
from tests.support.messages import LAYOUT, codec_of

USERS = "tests.support.users_parts:"


def config_of(uplink: str = "float32", downlink: str = "float32", **sections: Any) -> Any:
    own = {way: name if name in CODECS else f"{USERS}{name}" for way, name in
           (("uplink", uplink), ("downlink", downlink))}  # fmt: skip
    return tiny_config(wire=own, **sections)


def test_numbers_begin_at_128_uplink_first_and_one_codec_has_one() -> None:
    assert all(codec.number < FIRST_NUMBER for codec in CODECS.values())
    both = wire_codecs(f"{USERS}Halves", f"{USERS}Changes")
    assert (both.uplink.number, both.downlink.number) == (128, 129)
    one = wire_codecs(f"{USERS}Changes", f"{USERS}Changes")
    assert one.uplink is one.downlink
    assert one.uplink.number == 128
    assert wire_codecs("int8", f"{USERS}AN_OBJECT").downlink.number == 128
    assert wire_codecs("int8", "float32").uplink is CODECS["int8"]
    assert wire_codecs(f"{USERS}Inherited", "int8").uplink.number == 128


def test_rounding_and_steps_choose_the_codec_of_either_way_where_it_is_ours_to_choose() -> None:
    """Of 2.2, 0 and 0 with a root mean square of 1.27, a fine step is the power of two nearest to 2.54, which is 2.

    A coarse one is that of the range from 2.54 to 5.08, which is 4.
    """
    values, places = torch.tensor([2.2, 0.0, 0.0]), Places(*torch.zeros(2, 3, dtype=torch.int64))
    for up, beside in (("dither", "coarse"), ("at-random", "fine")):
        for down in (None, "coarse", "fine"):
            each = wire_codecs("adaptive", "adaptive", rounding=up, downlink_steps=down)
            assert each.uplink is CODECS["dithered" if up == "dither" else "adaptive"]
            data = each.downlink.encode_change(values, places, generator=torch.Generator())
            sent = {"coarse": 4.0, "fine": 2.0}[down or beside]
            assert each.downlink.decode(memoryview(data), places).tolist() == [sent, 0.0, 0.0]
    other = wire_codecs("int8", "int8", rounding="dither", downlink_steps="coarse")
    assert (other.uplink, other.downlink) == (CODECS["int8"], CODECS["int8"])


@pytest.mark.parametrize(
    ("entries", "classifies", "codec"),
    [(10_000, True, "dithered"), (9_999, True, "adaptive"), (10_000, False, "adaptive")],
)
def test_small_encoders_and_other_tasks_are_rounded_at_random_where_nothing_is_asked_for(
    entries: int, classifies: bool, codec: str
) -> None:
    """A regression by a hundred entries lost up to a third of its R2 to coarse changes (docs/compression.md)."""
    rounding = usual_rounding(entries, classifies=classifies)
    assert wire_codecs("adaptive", "adaptive", rounding=rounding).uplink is CODECS[codec]


def test_a_message_says_the_number_and_one_of_another_codec_is_refused() -> None:
    codec = wire_codecs(f"{USERS}Inherited", "int8").uplink
    mask = [True] * LAYOUT.num_channels
    update = make_update(LAYOUT, mask, torch.linspace(-0.4, 0.4, LAYOUT.num_entries))
    blob = pack_update(update, LAYOUT, codec, generator=generator(1, "test"))
    assert blob[6] == 128
    opened = {"server_round": update.server_round, "base_version": update.base_version}
    seen = unpack_update(blob, LAYOUT, codec, **opened)
    assert float((seen.values - update.values).abs().max()) < 0.01
    with pytest.raises(UpdateRejected, match=r"codec number 128, expected 2 \(int8\)"):
        unpack_update(blob, LAYOUT, CODECS["int8"], **opened)
    ours = pack_update(update, LAYOUT, CODECS["int8"], generator=generator(1, "test"))
    assert codec_of(ours) is CODECS["int8"]
    with pytest.raises(UpdateRejected, match=r"codec number 2, expected 128 \(tests\.support\.users_parts:Inherited\)"):
        unpack_update(ours, LAYOUT, codec, **opened)


@pytest.mark.slow
@pytest.mark.parametrize("downlink", ["Halves", "Changes", "AN_OBJECT"])
def test_a_run_in_both_directions_repeats_to_the_bit_and_refuses_nothing(tmp_path: Path, downlink: str) -> None:
    for name in ("one", "two"):
        run_tiny(config_of("Halves", downlink, rounds=3), tmp_path / name)
    rows = read_lines(tmp_path / "one" / "history.jsonl")
    assert all(row["rejected"] == 0 for row in rows)
    assert history_without_seconds(tmp_path / "one") == history_without_seconds(tmp_path / "two")


@pytest.mark.slow
def test_a_codec_of_the_same_bytes_runs_as_ours_does(tmp_path: Path) -> None:
    """Apart from its number, which is in no count, and a digest at registration, which counts as the first round's."""
    run_tiny(config_of("Inherited", rounds=2), tmp_path / "users")
    run_tiny(config_of("int8", rounds=2), tmp_path / "ours")
    assert fingerprints(tmp_path / "users") == fingerprints(tmp_path / "ours")
    assert history_without_seconds(tmp_path / "users")[1:] == history_without_seconds(tmp_path / "ours")[1:]


@pytest.mark.slow
def test_what_travels_is_as_short_as_the_codec_writes_it(tmp_path: Path) -> None:
    run_tiny(config_of("Halves", method="fedavg", rounds=1), tmp_path)
    layout = blueprint_of(config_of("Halves", method="fedavg", rounds=1)).layout
    sent = {row["values"] for row in read_lines(tmp_path / "ledger.jsonl")
            if row["phase"] == "train" and row["direction"] == "uplink"}  # fmt: skip
    assert sent == {2 * layout.num_entries}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Sizeless", "cannot be made without arguments: TypeError"),
        ("Unfinished", "cannot be made without arguments: TypeError: Can't instantiate abstract class Unfinished"),
        ("Silent", "must say relative = True or relative = False, got None"),
        ("Unsure", "must say feeds_back = True or feeds_back = False, got None"),
        ("TooLong", r"wrote \d+ bytes of \d+ values of \d+ channels, at most \d+ are allowed: its num_bytes must"),
        ("Negative", "num_bytes must return a whole number from 0, got -1"),
        ("Text", "must encode to bytes, got str"),
        ("Doubles", r"not decode what it encoded: .* must decode to a float32 tensor \[\d+\] on the CPU, got float64"),
        ("Fickle", "must decode the same bytes to the same finite numbers each time"),
        ("Breaking", r"failed: IndexError: out of bits \(users_parts\.py:\d+, in encode\)"),
        ("A_NUMBER", r"must be a class derived from spatl\.wire\.codec\.Codec, .*, got an object of type int"),
        ("Dataset", "got the class Dataset"),
        ("Halvs", r"has no 'Halvs' \(did you mean 'Halves'\?\)"),
    ],
)  # fmt: skip
def test_a_codec_that_does_not_do_is_one_line_before_the_run(name: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        make_blueprint(config_of(name))
    assert f"codec '{USERS}{name}'" in str(caught.value)


def test_a_relative_codec_must_leave_what_did_not_change() -> None:
    with pytest.raises(ConfigError, match="is relative and must decode a change of zero to zero"):
        make_blueprint(config_of(downlink="Drifting"))


def test_what_a_codec_raises_keeps_its_traceback() -> None:
    with pytest.raises(ConfigError) as caught:
        make_blueprint(config_of("Breaking"))
    assert from_outside(caught.value)


def test_bytes_that_a_codec_stumbles_over_are_a_refused_message() -> None:
    codec = UsersCodec(f"{USERS}Trusting", FIRST_NUMBER)
    places = LAYOUT.parameter_places
    with pytest.raises(UpdateRejected, match=r"cannot decode 1 bytes: IndexError"):
        codec.decode(memoryview(b"a"), places)


def test_c_is_derived_where_the_users_codec_sends_changes() -> None:
    """As with ours; what a config cannot see without importing it is refused when the run is built."""
    make_blueprint(config_of(downlink="Changes", control={"downlink": "derived"}))
    with pytest.raises(ConfigError, match=r"control\.downlink: derived needs a wire\.downlink that sends changes"):
        make_blueprint(config_of(downlink="Halves", control={"downlink": "derived"}))


def test_both_sides_compare_what_a_codec_decodes() -> None:
    ours, again = (make_blueprint(config_of("Halves")).rest for _ in range(2))
    assert ours == again
    assert list(ours) == [f"codec '{USERS}Halves'"]
    assert make_blueprint(config_of("Inherited")).rest[f"codec '{USERS}Inherited'"] not in ours.values()
    assert make_blueprint(config_of("int8")).rest == {}
