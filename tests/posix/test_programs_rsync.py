# SPDX-License-Identifier: Apache-2.0
"""rsync into the mount, out of it and within it: contents, links, attributes, holes and times arrive."""
import shutil

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed (packages.txt)")

MAKE = """
mkdir -p src/a/b src/empty; : > src/zero; echo hello > src/a/hello; seq 1 200000 > src/a/b/large
truncate -s 3000000 src/sparse; printf end | dd of=src/sparse bs=1 seek=2000000 conv=notrunc status=none
ln src/a/hello src/hard; ln src/a/b/large src/a/large; ln -s a/hello src/link; ln -s nowhere src/dangling
chmod 751 src/a; chmod 600 src/a/hello; chmod 4755 src/zero; mkfifo src/pipe
setfattr -n user.color -v blue src/a/hello; setfattr -n user.of -v directory src/a
find src -depth -exec touch -h -d '2001-02-03 04:05:06.789' {} +
"""

# What there is to see of the tree in $1: modes, counts of links, sizes, times, attributes, bytes, targets.
LIST = """
list() { (cd $1 && find . ! -type d -printf '%p %M %n %s %T+ %l\\n' -o -printf '%p %M %T+\\n' | sort
  getfattr -R -h -d . 2> /dev/null | sort; find . -type f -exec md5sum {} + | sort); }
"""

SCRIPTS = {
    "in_and_out": MAKE + LIST + """
host=$(mktemp -d /tmp/rsync.XXXXXX); list src > 1; cat 1
rsync -aHXS --checksum src/ $host/x; echo $?; list $host/x | cmp - 1 && echo out
rsync -aHX --checksum $host/x/ back; echo $?; list back | cmp - 1 && echo in
rsync -aHXi --checksum src/ back/; rm -rf $host 1
test $(stat -c %b back/sparse) -ge $(stat -c %b src/sparse) && echo sparse
rm -rf back src
""",
    "inside": MAKE + LIST + """
rsync -aHXS src/ copy/; echo $?; list copy > 1; list src | cmp - 1 && echo same
seq 1 200001 > src/a/b/large; echo x >> src/sparse; rm src/link; touch -d 2002-02-02 src/a/b/large src/sparse src src/a
rsync -aHX --inplace --no-whole-file --delete -i src/ copy/ | sort; list src > 1; list copy | cmp - 1 && echo updated
head -c 100000 src/a/b/large > part; rsync --append src/a/b/large part; cmp src/a/b/large part && echo appended
rsync -a --link-dest=$PWD/copy src/ linked/; stat -c %h linked/a/b/large copy/a/b/large
rsync -a --backup --suffix=~ src/zero part; ls
rm -rf 1 copy linked src part*
""",
    "more": MAKE + LIST + """
rsync -a --delay-updates --fsync --preallocate src/ d; diff -r --no-dereference -x pipe src d
rsync -a --partial-dir=.p --append-verify src/a/b/large part; cmp src/a/b/large part
echo ./a/hello > from; rsync -a --files-from=from src/ f; find f | sort
rsync -a --remove-source-files --exclude pipe src/ moved/
find src moved | sort; rsync -ai --delete --existing d/ moved/; rsync -ain moved/ d/; rsync -az d/ z; rsync -a z/ d/ -i
rm -rf d z f moved src part
""",
}


@pytest.mark.parametrize("name", [name if name != "more" else pytest.param(name, marks=pytest.mark.long)
                                  for name in SCRIPTS])
def test_rsync(runner, name):
    assert runner.same(SCRIPTS[name], timeout=170)
