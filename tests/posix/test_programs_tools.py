# SPDX-License-Identifier: Apache-2.0
"""Wider use of the shell's everyday tools: options of cp, tar, find and their like, editors that save, tools that
follow a growing file, archives, locks; status, output and resulting tree are those of a local directory."""
import shutil

import pytest

RUN = """
export LC_ALL=C TZ=UTC HOME=$PWD
t() { echo "== $*" | sed "s,$PWD,D,g"; timeout 60 "$@" 2>&1; echo "-> $?"; }
seq 1 100000 > big; : > zero; echo hi > small; truncate -s 3000000 sparse; echo end >> sparse; mkdir d; ln -s small link
"""

SCRIPTS = {
    "copy": """
t cp -a --reflink=auto --sparse=always sparse sp2; cmp sparse sp2; [ $(stat -c %b sp2) -lt 3000 ] && echo sparse
t cp --reflink=always big big2; t cp --reflink=never -p big big3; t cp --sparse=never sparse sp4; t cp -l big hard
stat -c %h big; t cp -s $PWD/big soft; readlink soft | sed "s,$PWD,D,"; t cp --backup=numbered small zero; ls
t cp -u small big; t cp -n small big; t cp --attributes-only big only; t cp -rT d dd; t cp --parents d/../small d
find d
t install -D -m 640 -p big x/y/z; stat -c %a x/y/z; t install -s /bin/true stripped; t install -b small x/y/z; ls x/y
t rm -f soft; t ln -sfn d link; t ln -sr x/y/z rel; readlink rel; t mv -T d e; t mv --backup small zero
t mv -u big big3
""",
    "sort_and_split": """
t split -n 4 big s.; cat s.?? | cmp - big; t split -l 40000 --filter='cat > $FILE.f' big q.; ls q.*
t csplit -s big 500 1000; wc -l xx*; rm xx* s.* q.*; t sort -T . -S 200k --parallel=2 -r big -o sorted; head -2 sorted
t sort -n -o sorted sorted; cmp sorted big; t sort -m -n big sorted -o m; wc -l m; t sort -nc big; t shuf -n 5 -o sh big
wc -l sh; t comm -12 big m; t join big sorted -o 1.1; t look 99999 big; t tsort zero; t ptx -A small; rm sorted m sh
t sh -c 'seq 1 40 | xargs -P4 -n1 sh -c "echo \\$0 > px.\\$0"; cat px.* | sort -n | md5sum; ls px.* | wc -l'; rm px.*
""",
    "tar": """
mkdir tr; cp sparse tr/; ln tr/sparse tr/h; echo q > tr/q; ln -s q tr/l; setfattr -n user.k -v v tr/q; mkfifo tr/p
t tar --sparse --xattrs --sort=name -cf t.tar tr; mkdir o; t tar --xattrs -xSf t.tar -C o; stat -c '%h %n' o/tr/*
getfattr -d o/tr/q; [ $(stat -c %b o/tr/sparse) -lt 3000 ] && echo sparse
t tar --sort=name --hard-dereference -cf u.tar tr
tar tvf u.tar | awk '{print $1, $3, $6}'; t tar -rf u.tar small; t tar --delete -f u.tar small; tar tf u.tar
t tar -df t.tar; t tar -uf t.tar tr; t tar -g snar -cf i0.tar tr; echo n > tr/n; tar -g snar -cf i1.tar tr
tar tf i1.tar | sort; t tar -I xz -cf t.txz tr; t tar xOf t.txz tr/q; t tar --remove-files -cf rem.tar o; ls
mkdir u; t tar -xf t.tar -C u --strip-components=1 --keep-newer-files; ls u; t tar -czf - tr | tar -tzf - | wc -l
rm -rf *.tar t.txz snar tr u
""",
    "allocate_and_lock": """
t truncate -s 10 t10; t truncate -r big t10; stat -c %s t10; t truncate -s '%4096' t10; stat -c %s t10
t truncate -c -s 5 none; t fallocate -l 100000 fa; stat -c %s fa; t fallocate -n -l 200000 fa; stat -c %s fa
t fallocate -p -o 0 -l 65536 fa; t fallocate -d fa; t fallocate -z -o 10 -l 100 fa; t fallocate -x -l 300000 fa
stat -c %s fa; t fallocate -l 0 fa; t flock lk -c 'echo in; flock -n lk true; echo inner $?'; t flock d true
t flock -s lk flock -sn lk echo both; (flock -x 9; flock -n lk true; echo held $?) 9> lk; t mkfifo ff
(echo through > ff) & cat ff; wait; t mkfifo -m 600 ff2; stat -c '%A' ff2; t mkfifo ff; rm ff ff2; t sync -d big
{ (ulimit -f 1; dd if=/dev/zero of=lim bs=4096 count=10); } 2> /dev/null; stat -c %s lim
dd if=big of=d5 oflag=direct status=none
t sh -c 'dd if=big of=d6 bs=50000 oflag=append,sync conv=notrunc,fsync 2>&1 | tail -1 | cut -c1-6'; cmp big d6; rm d5 d6
""",
    "paths": """
ln -s $PWD/d/up d/abs; ln -s ../small d/up; ln -s /tmp d/out; ln -s / d/top; host=$(mktemp -d /tmp/tools.XXXXXX)
t realpath --relative-to=. d/up d/abs; t readlink -f d/out d/top/tmp d/none; t readlink -f d/none/none
t readlink -e d/none; t realpath -s --relative-to=. d/up; ln -s $PWD/d $host/in; t ls $host/in | sed "s,$host,H,"
(cat $host/in/up; readlink -f $host/in/up | sed "s,$PWD,D,"; echo new > $host/in/new; cat d/new; cd $host/in
/bin/pwd | sed "s,$host,H,;s,$OLDPWD,D,"; cd -P ..; ls -d small; cat $host/in/../small; cat d/top/$host/in/new)
rm $host/in; rmdir $host; ls d; pathchk d; test d/up -ef small; echo $?; touch -d 2000-01-01 old; mkdir -p fd/1/2
touch fd/1/x fd/1/2/y; ln big hard; t find . -newer old -name 'b*'; find . -samefile big | sort
find . -inum $(stat -c %i big) | sort; t find fd -name x -delete; t find fd -delete; find . -maxdepth 1 -size +1k | sort
find . -empty | sort; find . -xdev -links +1 -type f | sort; find . -regex '.*/b.*' -o -mmin +100 | sort
find -L d -maxdepth 1 -name up; find . -maxdepth 1 -name 's*' -fprint names; sort names
t find d/out/ -maxdepth 0; rm d/abs names
""",
    "edit": """
seq 1 2000 > f; t vim -u NONE -i NONE -es -c 'normal Goend' -c 'set backup writebackup backupskip= backupdir=.' -c wq f
tail -1 f; ls -A; t vim -u NONE -i NONE -es -c 'set backupcopy=no' -c '%s/1/one/g' -c wq f; head -1 f
t vim -u NONE -i NONE -N -es \\
-c 'set directory=.' -c 'e f' -c 'normal x' -c wq; printf '1d\\nw\\nq\\n' | ed -s f; head -1 f; cp -p small a; ln a hard
ln a a.bak; echo new > a.new; mv -f a.new a; cat a hard a.bak; t sed -i.orig s/new/newer/ a; cat a a.orig
t sed -i --follow-symlinks s/hi/ho/ link; cat small; t sed -n '1w out' a; cat out; seq 1 50 > p1
sed 's/5/five/' p1 > p2
diff -u --label a --label b p1 p2 > p; cp p1 p3; t patch -b p3 p; cmp p2 p3; ls p3*; t patch -R p3 p; cmp p1 p3
t patch p2 p < /dev/null; ls *.rej; seq 1 5 | tee t1 t2 > /dev/null; seq 6 7 | tee -a t1 > /dev/null; cat t1 t2
t head -n -1998 f; t tail -c 5 f; perl -pi -e 's/o/0/' t1 a; cat a; t shred -u t2; ls
t awk '{print > ("aw" NR % 2)}' t1
""",
    "follow": """
echo start > grow; (tail -n +1 -s 0.02 -f grow & echo $! > pid; wait) > seen 2> /dev/null &
await() { for i in $(seq 600); do grep -q "$1" seen && return; sleep 0.02; done; echo "no $1"; }
await start; echo one >> grow; await one; seq 1 100000 >> grow; await 100000
kill $(cat pid); wait; cmp grow seen
(tail -F -s 0.02 grow & echo $! > pid; wait) > seen 2> /dev/null & await 100000
mv grow grow.1; echo fresh > grow; await fresh
truncate -s 0 grow; echo cut >> grow; await cut; kill $(cat pid); wait
tail -s 0.02 --pid=$$ -n 1 small 2> /dev/null
python3 -c "
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(0)
print(libc.inotify_add_watch(fd, b'small', 2) >= 0 or errno.errorcode[ctypes.get_errno()] == 'ENOTSUP')"; rm seen pid
""",
    "archives": """
mkdir z; cp big small z; ln -s f z/l; touch -d 2020-02-02 z/*; zip -qry z.zip z; unzip -qt z.zip; mkdir u
unzip -q z.zip -d u; diff -r --no-dereference z u/z && echo same; zip -qd z.zip z/small; zip -qu z.zip big
unzip -l z.zip | tail -1; cp big g; gzip -n g; ls g*; gzip -d g.gz; cmp big g; gzip -nk g; xz -k g; bzip2 -k g
gzip -t g.gz; xz -t g.xz; zcat g.gz | cmp - g; xzcat g.xz | cmp - g; xz -d -f g.xz; t gzip -k g; ls g*; rm z.zip
du -a --apparent-size -b z; df . | wc -l; df -i . | wc -l; t cksum big; sha256sum big > s; t sha256sum -c s
ar rc lib.a small big; ar t lib.a; ar x lib.a; ar d lib.a big; ar t lib.a; python3 -m zipfile -c p.zip z; rm p.zip lib.a
""",
    "shell": """
exec 3<>rw; echo hello >&3; read -u3 x; echo "<$x>"; mapfile -t lines < big; echo ${#lines[@]}
coproc { cat small; cat; }
read -u ${COPROC[0]} x; echo $x; eval "exec ${COPROC[1]}>&-"; wait
diff <(cat big) <(cat big) && echo eq; while read l; do n=$l; done < small
echo $n; [[ big -nt small ]]; source /dev/stdin <<< "echo sourced"; cat < <(cat big) | wc -l
(trap "echo bye > tr" EXIT); cat tr; umask 077; : > um; stat -c %a um; pushd d > /dev/null; ls ../small
popd > /dev/null
printf 'out: in\\n\\tcp in out; echo made\\nin: ; echo 1 > in\\nsub/%%: ; mkdir -p sub; touch $@\\n' > Makefile
printf 'many: $(foreach i,1 2 3 4 5 6 7 8,sub/$i)\\n' >> Makefile; make; make; sleep 0.01; touch in; make; make -q in
make -s -j4 many | sort; ls sub; make -n many; make -B out; perl -e 'open(F, "<", "big"); @l = <F>;
print scalar(@l), "\\n";
opendir(D, "."); print scalar(grep {/^s/} readdir D), "\\n"; flock(F, 2) or print "no\\n"; rename "rw", "rx";
truncate("rx", 5); utime(1, 2, "rx"); print((stat "rx")[9], "\\n"); open(G, "+<", "rx"); seek(G, 0, 2); print G "more";
close G; print `cat rx`, "\\n"'; sqlite3 sq.db 'create table t(a); insert into t values(1),(2); select sum(a) from t;
pragma integrity_check; vacuum;'; rm -f sq.db
""",
}
# What not every system has.
NEEDS = {"tar": ["xz", "setfattr"], "edit": ["vim", "ed", "patch", "perl"], "archives": ["zip", "unzip", "xz", "bzip2"],
         "shell": ["perl", "sqlite3"]}
QUICK = ("allocate_and_lock", "paths", "follow")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long)
                                  for name in SCRIPTS])
def test_tools(runner, name):
    missing = [tool for tool in NEEDS.get(name, []) if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
    assert runner.same(RUN + SCRIPTS[name], timeout=170)
