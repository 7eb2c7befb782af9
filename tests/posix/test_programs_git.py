# SPDX-License-Identifier: Apache-2.0
"""git does on the mount what it does on a local directory: the same objects, so the same names of commits, and
`git fsck` finds nothing."""
import pytest

WHO = """
export HOME=$PWD/home GIT_CONFIG_NOSYSTEM=1 GIT_EDITOR=true
export GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z
export GIT_AUTHOR_NAME=a GIT_COMMITTER_NAME=c GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_EMAIL=c@example.org
mkdir home; git config --global init.defaultBranch main; git config --global advice.detachedHead false
git init -q r && cd r || exit 98
mkdir d0 d1 d2 d3 d4; for i in $(seq 1 16); do seq $i $((i * 120)) > d$((i % 5))/f$i; done
ln -s d1 link; printf 'all:\\n' > Makefile; chmod +x Makefile
git add . && git commit -qm one; git rev-parse HEAD; git status --short
"""

# What git leaves differs in times: the index, the packs' file names by the order of threads.
FORGET = "\ncd $HOME/.. && rm -rf $(ls)\n"

SCRIPTS = {
    "cycle": """
git config core.fsync all
git branch topic; echo change >> d1/f1; git status --short; git commit -qam two
git checkout -q topic; echo other > d2/new; git add d2/new; git commit -qm three
git checkout -q main; git merge -q --no-edit topic; git log --format='%H %s' | sort
git clone -q --no-hardlinks . ../copy; git -C ../copy fsck --full 2>&1; git -C ../copy rev-parse HEAD
git gc -q --prune=now; git fsck --full --strict 2>&1; git count-objects -v | grep -v size
git clone -q . ../linked; git -C ../linked status --short; echo x >> d1/f1; git status --short
""",
    "history": """
git checkout -q -b topic; sed -i 3d d3/f3; git commit -qam topic; git checkout -q main
echo more >> d4/f4; git commit -qam more; git checkout -q -b based HEAD~1; echo r > rr; git add rr; git commit -qm rr
git rebase -q topic; git log --format='%H %s'
git checkout -q main; echo dirty >> Makefile; git stash -q; git status --short; git stash pop -q; git diff | tail -3
git checkout -q Makefile; git worktree add -q ../wt topic; (cd ../wt; git status --short; ls | wc -l; echo w > w
git add w; git commit -qm wt; git rev-parse HEAD); git worktree list | wc -l; git worktree remove ../wt
git worktree prune; git grep --threads 4 -c 77 | sort | head -5; git tag -a -m v v1; git describe
git archive HEAD | tar t | wc -l; touch -d '1 hour' d1/f1; git status --short
git rm -q -r d0; git mv d3 d33; git commit -qm moved; git status --short; git show --stat HEAD | tail -1
git reflog | wc -l; git blame d1/f1 | tail -1 | cut -c1-8; git reset -q --hard HEAD~1
git clean -fdxq; git status --short
""",
    "transfer": """
git config core.fsyncObjectFiles true
cd ..; git clone -q "file://$PWD/r" c1; git clone -q --bare r b.git; git clone -q --shared r c2
cd r; echo a >> d1/f1; git commit -qam two; git gc -q --aggressive --prune=now; git fsck --full --strict 2>&1
cd ../c1; git pull -q; git rev-parse HEAD; echo p > p; git add p; git commit -qm p
git push -q ../b.git HEAD:refs/heads/x
cd ../b.git; git log --format='%H %s' x; git update-server-info; git pack-refs --all; git repack -q -a -d
git fsck --full 2>&1; cd ../c2; git fsck --full 2>&1; git bundle create -q ../bundle HEAD; cd ..
git bundle verify -q bundle > /dev/null 2>&1; echo $?; git clone -q bundle c3; git -C c3 rev-parse HEAD
git -C c1 -c protocol.file.allow=always submodule --quiet add ../c3 sub; git -C c1 commit -qm sub
git -C c1 ls-tree HEAD sub
""",
}


@pytest.mark.parametrize("name", [name if name == "cycle" else pytest.param(name, marks=pytest.mark.long)
                                  for name in SCRIPTS])
def test_git(runner, name):
    assert runner.same(WHO + SCRIPTS[name] + FORGET, timeout=170)
