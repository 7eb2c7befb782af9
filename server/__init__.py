# SPDX-License-Identifier: Apache-2.0
"""The MadFS server: one process per shard, every server a peer.  Installed as ``pymadfs.server``."""
