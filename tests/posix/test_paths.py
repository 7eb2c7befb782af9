# SPDX-License-Identifier: Apache-2.0
"""Paths that cross the border of the mount, and odd ones: the same as between two local directories."""
import subprocess

import pytest
from support import TIMEOUT_S

# M is a directory on the mount or a local one in its place, H one of the host's beside it.
CASES = {
    "links_from_the_host": """
        mkdir $M/e; echo hello > $M/f; mkdir sub; ln -s $M abs; ln -s $M/f file; ln -s abs two; ln -s loop loop
        ln -s $M/none dangling; ln -s ..$(realpath -m --relative-to=.. $M | sed s,^,/,) rel
        cat abs/f file two/f abs/./f sub/../abs//f rel/f; cat nope loop dangling abs/none file/; echo made > dangling
        cat $M/none; ls abs/ two; ls -d abs abs/. abs/e/; stat -c %F abs file dangling; stat -L -c %F abs file
        mkdir abs/new two/new; rmdir two/new; echo x > two/w; mv two/w abs/v; cat $M/v; rm two/v; rm two/v; touch -h abs
        ln -s target two/q; readlink two/q abs two | sed s,$M,M,; chmod 600 file; stat -c %a $M/f; truncate -s 3 file
        cat $M/f; for t in e d f L r x; do test -$t abs && echo $t; test -$t file && echo f$t; done; rm abs file; ls $M
    """,
    "links_out_of_the_mount": """
        mkdir sub $M/e; echo there > sub/s; ln -s $H $M/out; ln -s $H/sub/s $M/file; ln -s out/sub $M/e/no
        ln -s ../out/sub $M/e/yes; cat $M/out/sub/s $M/file $M/e/yes/s $M/e/no/s $M/out/../$(basename $H)/sub/s
        echo more >> $M/file; cat sub/s; ln -s $M sub/back; ls $M/out/sub/back/; cat $M/out/sub/back/out/sub/s
        ln -s $M/loop sub/loop; ln -s $H/sub/loop $M/loop; cat $M/loop sub/loop
        mkdir $M/out/made; rmdir made; mv $M/out/sub/s $M/s; cat $M/s; cp $M/s $M/out/copy; cat copy; rm $M/out; ls
    """,
    "in_and_out_by_dots": """
        mkdir -p $M/a/b; echo f > $M/a/f; echo h > h
        cat $M/a/b/../f $M/a/../a/f $M/a/b/../../../../../../../../..$H/h .///./h; cd $M/a/b; cat ../f ../b/.././f
        cat ../../../../../../../../..$H/h; cat ../none/../f; cat ../f/..; cd ..; cd ./b/../b; pwd | sed s,$M,M,; cd $H
        cd ../../../../../../../..$M/a; cat f; cd $H; /bin/pwd | sed s,$H,H,; cat $M/a/f/
        ls $M/a/f/. ; ls $M/a/b/../b/./
        mkdir $M/new/; rmdir $M/new/; touch $M/nofile/; mkdir $M/a/f/x; rm $M/a/b/
        mv $M/a/f/ $M/a/g; mv $M/a/b/ $M/a/c/
    """,
    "working_directory": """
        mkdir -p $M/w/x; ln -s $M/w link; (cd link && /bin/pwd -P | sed s,$M,M, && touch here && cd x/.. && ls)
        cd link/x; echo y > y; cat $M/w/x/y; (cd ..; ls; cat x/y); bash -c 'cat y; cd ..; cat x/y'; env -i /bin/cat y
        (cd - > /dev/null; /bin/pwd | sed s,$H,H,); cd; cat y; cd $M/w/x; rm -r $M/w; cat y; touch z
        mkdir -p $M/w/x; cd $M/w/x; echo back > y; cat y
    """,
    "names": r"""
        for name in $'\xff\xfe' $'new\nline' ' ' '*' '"' '\' -dash é .hidden $'\x01' x.; do
            echo content > $M/"$name" && cat $M/"$name" && mv -- $M/"$name" $M/"$name$name" && ls -b $M
            rm -- $M/"$name$name"
        done
    """,
}

LIMITS = r"""
import errno, os, sys
top = os.fsencode(sys.argv[1])
os.chdir(top)
def attempt(function, *arguments, **options):
    try:
        result = function(*arguments, **options)
    except (OSError, ValueError) as error:
        return errno.errorcode[error.errno] if isinstance(error, OSError) else "ValueError"
    return type(result).__name__ if isinstance(result, os.stat_result) else result
directory = os.open(top, os.O_RDONLY)
def new(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
for size in 254, 255, 256, 4000:
    name = b"n" * size
    print(size, [attempt(*call) for call in ((new, name), (os.stat, name), (os.rename, name, b"m" * size),
        (os.mkdir, name), (os.rmdir, name), (os.unlink, b"m" * size), (os.symlink, b"t", name), (os.readlink, name))])
deep = b"d/" * 2000
os.makedirs(b"d/d/d")
for pad in range(4085, 4100):
    path = top + b"/" + b"./" * ((pad - len(top) - 2) // 2)
    path += b"/" * (pad - len(path) - 1) + b"d"
    print(pad, attempt(os.stat, path), attempt(os.open, path, 0) != "ENAMETOOLONG")
print(attempt(os.stat, b"./" * 1000 + b"d"), attempt(os.stat, b"./" * 1000 + b"d", dir_fd=directory))
print(attempt(os.stat, deep), attempt(os.mkdir, deep), attempt(os.symlink, b"t" * 4095, b"l"),
      attempt(os.symlink, b"t" * 4096, b"k"))
print(len(attempt(os.readlink, b"l")), attempt(os.stat, b"l"), attempt(os.stat, b""), attempt(os.stat, b"d\0"))
for path in b"d/ d/. d/.. d/../d// f f/ f/. ./f . .. / // d/d/../../f/../d".split():
    for call in (os.stat, os.lstat, os.listdir, os.mkdir, os.rmdir, os.unlink, os.readlink):
        if path not in (b"..", b"/", b"//") or call in (os.stat, os.lstat, os.readlink):
            result = attempt(call, path)
            print(path, call.__name__, sorted(result) if isinstance(result, list) else result)
    new(b"f")
    os.makedirs(b"d/d/d", exist_ok=True)
"""


def run(directory, host, environment, command):
    subprocess.run(["mkdir", "-p", directory, host], env=environment, check=True, timeout=TIMEOUT_S)
    done = subprocess.run(command, env={**environment, "M": directory, "H": host, "HOME": host}, cwd=host, check=False,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * TIMEOUT_S)
    seen = done.stdout + b"\0" + done.stderr
    return seen.replace(directory.encode(), b"M").replace(host.encode(), b"H").split(b"\n")


def both(runner, tmp_path, name, *command):
    """What the command prints with two local directories, and with one on the mount in place of the first."""
    local = run(f"{tmp_path}/plain", f"{tmp_path}/host-a", runner.plain, [*command, f"{tmp_path}/plain"])
    ours = f"{runner.mount}/paths-{name}"
    return local, run(ours, f"{tmp_path}/host-b", runner.loaded, [*command, ours])


@pytest.mark.parametrize("case", CASES)
def test_scripts(runner, tmp_path, case):
    local, ours = both(runner, tmp_path, case, "bash", "-c", CASES[case])
    assert ours == local


def test_limits(runner, tmp_path):
    local, ours = both(runner, tmp_path, "limits", "python3", "-c", LIMITS)
    assert local[-1] == b"\0"
    assert ours == local
