# SPDX-License-Identifier: Apache-2.0
"""Names of what decoder.c hands out: the enumerations of intercept/x86_64/arch.h."""
import re

from support import ROOT


def names(enumeration):
    text = (ROOT / "intercept" / "x86_64" / "arch.h").read_text()
    body = re.search(rf"enum {enumeration} {{(.*?)}};", text, re.DOTALL)[1]
    return [name.removeprefix("ARCH_") for name in re.findall(r"^\s*(ARCH_\w+),", body, re.MULTILINE)]


KINDS, TIERS = names("arch_kind"), names("arch_tier")
