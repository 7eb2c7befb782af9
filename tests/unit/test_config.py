# SPDX-License-Identifier: Apache-2.0
"""Settings: what is taken, and that a wrong one is named."""
import pytest

from pymadfs.config import SETTINGS, Config

WRONG = {
    "MADFS_CHUNK_SIZE": ["0", "-1", "1", "4095", "64M1", "65M", "1G", "2G", "x", "", "1e6", "512KiB", "9" * 30],
    "MADFS_INLINE_MAX": ["0", "2M", "10G", ""],
    "MADFS_EAGER_MAX": ["0", "65K", "1M", "many"],
    "MADFS_TIMEOUT_MS": ["0", "-1", "1.5", "9" * 20],
    "MADFS_CONNECT_MS": ["0", "-3", "9" * 20],
    "MADFS_GRACE_MS": ["-1", "9" * 20],
    "MADFS_LINGER_MS": ["-1", "9" * 20],
    "MADFS_LEND_US": ["-1", "1000001"],
    "MADFS_SPIN_US": ["-2", "9" * 20, ""],
    "MADFS_PRELOAD": ["x", "2"],
    "MADFS_DEBUG": ["maybe"],
    "MADFS_STRICT": ["-1"],
}
RIGHT = {"MADFS_CHUNK_SIZE": ["4K", "470080", "64M"], "MADFS_INLINE_MAX": ["1", "1M"], "MADFS_EAGER_MAX": ["64k"],
         "MADFS_TIMEOUT_MS": ["1"], "MADFS_GRACE_MS": ["0"], "MADFS_LEND_US": ["0"], "MADFS_SPIN_US": ["-1", "0"],
         "MADFS_DEBUG": ["", "1", "off"]}


@pytest.mark.parametrize(("variable", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_wrong_values_are_named(variable, text):
    with pytest.raises(ValueError, match=f"^{variable}=.* is not valid: .") as error:
        Config({variable: text})
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("variable", "text"), [(name, text) for name, texts in RIGHT.items() for text in texts])
def test_the_limits_themselves_are_taken(variable, text):
    Config({variable: text})


def test_every_setting_with_a_limit_is_tried():
    assert {setting.variable for setting in SETTINGS if setting.parse is not str} == set(WRONG)


def test_defaults_are_within_the_limits():
    for setting in SETTINGS:
        if setting.parse is not str:
            Config({setting.variable: str(int(setting.default))})
