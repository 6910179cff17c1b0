"""The owner's file: strict, bounded, commented, and each mistake is one line."""

import pytest

from spatl.config.device import DEVICE_FILE, DeviceConfig, device_text, read_device
from spatl.config.settings import field_meanings
from spatl.errors import ConfigError


def written(directory, text):
    path = directory / DEVICE_FILE
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_text_that_is_made_reads_as_the_safe_values_and_has_a_comment_on_each_setting(tmp_path):
    text = device_text()
    assert read_device(written(tmp_path, text)) == DeviceConfig()
    lines = text.splitlines()
    settings = [number for number, line in enumerate(lines) if line and not line.lstrip().startswith("#")]
    assert len(settings) > 25
    assert all(lines[number - 1].lstrip().startswith("# ") for number in settings)
    assert max(map(len, lines)) <= 110


def test_no_file_is_none(tmp_path):
    assert read_device(tmp_path / DEVICE_FILE) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limits: {stepz: 3}", r"limits\.stepz: unknown key \(did you mean 'steps'\?\)"),
        ("limits: {steps: 1.5}", r"limits\.steps: input should be a valid integer, got 1\.5"),
        ("limits: {steps: '3'}", r"limits\.steps: input should be a valid integer, got '3'"),
        ("limits: {steps: 0}", r"limits\.steps: input should be greater than or equal to 1, got 0"),
        ("limits: {seconds: true}", r"limits\.seconds: input should be a valid number, got True"),
        ("limits: {hours: 22-6}", r"limits\.hours: "),
        ("limits: {command: []}", r"limits\.command: is empty"),
        ("leaves: {predictor: 1}", r"leaves\.predictor: input should be a valid boolean, got 1"),
        ("leaves: {statistics: some}", r"leaves\.statistics: input should be 'nothing', 'aggregated' or 'shared'"),
        ("models: [resnet9]", r"models: unknown name 'resnet9' \(did you mean 'resnet8'\?\)"),
        ("methods: [fedsgd]", r"methods: unknown name 'fedsgd'"),
        ("methods: every", r"methods"),
        ("files: {../net.py: x}", r"files: '\.\./net\.py' must be a path from this directory on"),
        ("files: {/net.py: x}", r"files: '/net\.py' must be a path from this directory on"),
        ("files: {net.py: x}", r"files: net\.py: expected its SHA-256, 64 hexadecimal digits, got 'x'"),
        ("code: {trusted: {fpk_1: ssh-rsa AAAA}}", r"code\.trusted: fpk_1: expected a public key as ssh-ed25519 KEY"),
        ("budget: {keep_ratio: 0.3, flops_ratio: 0.2}", r"budget: set one of keep_ratio, flops_ratio, uplink_bytes"),
        ("budget: {keep_ratio: 2}", r"budget\.keep_ratio: "),
        ("data: {dir: 3}", r"data\.dir: input should be a valid string, got 3"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nlimits: {steps: 3}\nlimits: {steps: 4}", r"limits stands twice"),
        ("x: &a [" + "1, " * 999 + "1]\ny: [" + "*a, " * 999 + "*a]", r"stands for at most 100,000 values"),
        ("", r"is empty: put back what it said, or delete it for the safe values"),
        ("- steps", r"expected keys and values at the top level, got list"),
        ("limits: [", r"is not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_setting(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told) as caught:
        read_device(written(tmp_path, text))
    assert DEVICE_FILE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_setting_says_what_it_means():
    assert set(DeviceConfig.model_fields) - {"data", "leaves", "code", "limits", "budget"} <= set(
        field_meanings(DeviceConfig)
    )
