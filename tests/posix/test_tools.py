# SPDX-License-Identifier: Apache-2.0
"""Everyday programs do on the mount what they do on a local directory: status, output and resulting tree are
compared."""
import pytest

# A small tree with every kind of file we keep: empty, tiny, inlined, of several chunks, sparse, links, modes and times.
MAKE_TREE = """
mkdir -p src/a/b/c src/empty
: > src/zero
printf 'hello\\n' > src/a/hello
head -c 3901 /dev/zero | tr '\\0' 'x' > src/a/b/small
seq 1 400000 > src/a/b/c/large
truncate -s 3000000 src/a/sparse
printf 'end' | dd of=src/a/sparse bs=1 seek=2000000 conv=notrunc status=none
ln -s a/hello src/link
ln -s nowhere src/dangling
ln -s a/b src/dirlink
chmod 751 src/a
chmod 600 src/a/hello
touch -d '2001-02-03 04:05:06.789' src/a/b/small src/zero
"""

SCRIPTS = {
    "cp_r": MAKE_TREE + "cp -r src dst && cp -a src copy && diff -r --no-dereference src dst && "
                        "diff -r --no-dereference src copy",
    "cp_host_both_ways": MAKE_TREE + "t=$(mktemp -d /tmp/cmp.XXXXXX); cp -r src $t/ && cp -r $t/src back && "
                                     "diff -r --no-dereference "
                         "src back; rm -rf $t",
    "ls_lR": MAKE_TREE + "rm src/dangling; find src -depth -exec touch -h -d '2020-01-01' {} +; "
                         "ls -lR --time-style=full-iso src | sed -e '/^total/d' "
                         r"-e 's/^\(d[^ ]* *[0-9]* [^ ]* *[^ ]* *\)[0-9]*/\1SIZE/'",
    "ls_links": MAKE_TREE + "ls -1RF src; ls -l src/nothing src/link/ ; ls -ld src/dirlink/ | cut -c1-10",
    "tar": MAKE_TREE + "tar cf x.tar src && mkdir out && tar xf x.tar -C out && "
                       "diff -r --no-dereference src out/src && tar tf x.tar | sort; rm x.tar",
    "tar_gz_pipe": MAKE_TREE + "tar czf - src | (mkdir out && cd out && tar xzf -) && "
                               "diff -r --no-dereference src out/src; rm -rf out",
    "md5sum": MAKE_TREE + "find src -type f | sort | xargs md5sum > sums && md5sum -c sums && "
                          "echo changed >> src/a/hello; md5sum -c sums",
    "find": MAKE_TREE + "find . | sort; find src -type f -size +1000c | sort; find src -name '*ll*' | sort; "
                        "find -L src -type f | sort; find src -type d -empty; "
                        "find src -newer src/zero -type f | sort; find src -type l -printf '%p %l\\n' | sort; "
                        "find src -type f -printf '%f %s %m\\n' | sort",
    "find_delete": MAKE_TREE + "find src -type f -delete; find src | sort; find src -depth -type d -empty -delete; "
                               "find . | sort",
    "du": MAKE_TREE + "du -s --apparent-size -b src/a/hello src/a/b/small src/a/b/c/large src/zero && "
                      "du -s src > size && test -s size; rm size",
    "dd": "dd if=/dev/zero of=f bs=1M count=5 status=none; seq 1 180000 | head -c 1228800 > g; "
          "dd if=g of=h bs=47008 status=none && cmp g h && dd if=g of=f bs=1000 skip=3 seek=7 count=11 conv=notrunc "
          "status=none; dd if=g bs=1 skip=5 count=20 status=none | cmp - <(tail -c +6 g | head -c 20) && "
          "rm g h; stat -c '%s' f",
    "dd_past_end": "echo abc > f; dd if=f bs=1 skip=10 status=none | wc -c; dd if=/dev/zero of=f bs=1 count=1 "
                   "seek=600000 status=none; wc -c f",
    "mv": MAKE_TREE + "mv src/a/hello src/renamed && mv src/renamed src/a/b/ && mv src/a/b/small src/zero && "
                      "ls -R src; mv src moved; ls -R moved; mv nothing x; mv moved/a/b/renamed moved/empty; "
                      "mv -n moved/zero moved/a/sparse; find . | sort",
    "rm": MAKE_TREE + "rm src; rm src/nothing; rm -f src/nothing; rmdir src; rmdir src/empty; rm -r src/a; ls src; "
                      "rm -rf src; ls",
    "touch": "touch a b; touch -d '1999-12-31 23:59:59.5' a; touch -r a b; stat -c '%n %y' a b; touch -c nothing; ls; "
             "touch missing/x; touch -h -d '2000-01-01' a; stat -c '%y' a; touch -a -d '2010-01-01' a; "
             "stat -c '%x %y' a",
    "chmod": "touch f; mkdir d; for m in 0 1 22 444 644 755 777 1777 4755 2755; do chmod $m f d; "
             "stat -c '%a %A' f d; done; chmod u+x,g-w f; stat -c %a f; chmod 755 nothing; chmod -R go-rwx .; "
             "stat -c %a f d; chmod 755 .",
    "chown": "touch f; mkdir d; chown 12:34 f d; stat -c '%u:%g' f d; chown -R 0:0 .; stat -c '%u:%g' f d; "
             "chgrp 5 f; stat -c %g f",
    "ln_s": "echo data > file; mkdir dir; ln -s file l1; ln -s l1 l2; ln -s dir dl; ln -s $PWD/file abs; "
            "cat l1 l2 abs; readlink l1 l2 dl; ln -s file l1; echo more >> l2; cat file; echo x > dl/new; "
            "ls dir; readlink -f l2 | sed 's,.*/,,'; ln -s loop loop; cat loop; rm l1 dl abs; ls; "
            "ln -s /etc/passwd host; cmp host /etc/passwd && echo same; rm host",
    "symlink_host_relative": "mkdir -p a/b; ln -s ../../a up; cat up/x; ln -s ../.. a/b/top; ls a/b/top",
    "redirect": "echo one > f; echo two >> f; cat < f; { echo a; echo b; cat f; } > g; cat g; (echo x; "
                "echo y) >> g; wc -l < g; cat f g | sort | uniq -c > h; cat h; echo err 2> e >&2; cat e; "
                "ls nothing > out 2>&1; wc -l < out; : > f; wc -c < f",
    "redirect_fds": "exec 3> f; echo a >&3; echo b >&3; exec 3>&-; cat f; exec 4< f; read x <&4; read y <&4; "
                    "echo $y $x; exec 4<&-; exec 5<> f; read z <&5; echo Z >&5; exec 5>&-; cat f; cat 0< f; "
                    "echo q >| f; cat f; set -C; echo no > f; cat f",
    "redirect_order": "exec 3> log; for i in 1 2 3; do echo parent $i >&3; sh -c 'echo child >&3'; "
                      "/bin/echo external >&3; done; exec 3>&-; cat log",
    "heredoc": "cat > f <<EOF\nline 1\nline $((1+1))\nEOF\ncat f; while read -r l; do echo \"<$l>\"; done < f; "
               "cat <<< string > g; cat g",
    "pipes": "seq 1 100000 | tee f | tail -1; sort -rn f | head -3; grep -c 7 f; awk '{s+=$1} END {print s}' f; "
             "sed -n '5,7p' f; cut -c1 f | sort | uniq -c | sort -rn | head -2; tr 0 x < f | head -12 | tail -3; "
             "paste f f | tail -1; split -l 30000 f p.; cat p.* | cmp - f && ls; comm -12 p.aa p.ab | head -1; "
             "tac f | head -2; wc f; xargs -n 50000 echo < f | wc -l",
    "background": "for i in 1 2 3 4; do (seq $i $((i+5000)) > f$i) & done; wait; cat f1 f2 f3 f4 | md5sum; wc -l f?",
    "append_many": "for i in 1 2 3 4 5 6 7 8; do (for j in 1 2 3 4 5 6 7 8 9 10; do echo $i.$j >> log; "
                   "done) & done; wait; sort log | md5sum; wc -l < log; rm log",
    "cd": "mkdir -p a/b; cd a/b; pwd | sed 's,.*/a/b,A/B,'; echo x > here; cd ..; ls b; cat b/here; cd b; "
          "cat ../b/here; cd ../..; ls; cd /; ls -d tmp; cd - > /dev/null; ls; (cd a && ls); cd nothing; "
          "cd a/b/here; pushd a > /dev/null; ls; popd > /dev/null; /bin/pwd | sed 's,.*/,,' | wc -l",
    "test_operators": MAKE_TREE + "for t in -e -f -d -L -s -r -w -x; do for f in src src/zero src/a/hello src/link "
                                  "src/dangling src/none; do test $t $f && echo $t $f; done; done; "
                                  "[ src/a/b/small -ot src/a/hello ] && echo older",
    "glob": MAKE_TREE + "echo src/*; echo src/a/*/s*; echo src/**; shopt -s globstar; echo src/**; "
                        "echo src/[az]*; echo src/no*",
    "install": "echo data > f; install -m 640 f g; install -d -m 700 x/y; install -t x/y f g; "
               "stat -c '%n %a' g x/y x/y/f; ls x/y",
    "sed_i": "printf 'a\\nb\\nc\\n' > f; sed -i 's/b/B/' f; cat f; sed -i.bak 1d f; cat f f.bak; ls; "
             "perl -pi -e 's/c/C/' f; cat f; ls",
    "cmp_diff": "seq 1 50000 > a; sed 's/^777$/x/' a > b; cmp a b; diff a b; diff -q a b; cp a c; cmp a c; "
                "diff3 a b c | head -3",
    "truncate": "seq 1 300000 > f; truncate -s 100 f; cat f | md5sum; truncate -s 1000000 f; md5sum f; "
                "truncate -s 600000 f; md5sum f; truncate -s +5 f; stat -c %s f; truncate -s 0 f; wc -c f; "
                "truncate -s 10 nofile; stat -c %s nofile",
    "names": "touch 'with space' $'new\\nline' 'ünïcode' '-dash' \"$(printf 'x%.0s' $(seq 1 255))\"; "
             "ls | od -c | head -30; touch \"$(printf 'x%.0s' $(seq 1 256))\" 2>/dev/null || echo long; rm -- *; ls",
    "many": "mkdir d; for i in $(seq 1 300); do : > d/f$i; done; ls d | wc -l; ls d | sort | md5sum; rm d/f1*; "
            "ls d | wc -l; rm -rf d; ls",
    "mkdir": "mkdir a; mkdir a; mkdir a/b/c; mkdir -p a/b/c; mkdir -m 700 p; stat -c %a p; touch f; mkdir f/x; "
             "mkdir f; rmdir a; rmdir a/b/c; find . | sort; mkdir -p f/x/y; mkdir t/; ls -d t/; rmdir t/",
    "trailing_slash": "touch f; mkdir d; cat f/; ls f/; ls -d d/; touch d/; touch n/; ln -s d l; ls -d l/; "
                      "rm l/; rmdir l/; mv f/ g; mv d/ e/; ls",
    "ten_chunks": "seq 1 1200000 > f; md5sum f; tail -c 100 f; dd if=f bs=524289 skip=3 count=2 status=none | "
                  "md5sum; cp f g; cmp f g; rm f; ls",
    "stat_formats": "echo hi > f; chmod 640 f; mkdir d; ln -s f l; stat -c '%n %F %a %s %U %G %h %t' f l; "
                    "stat -c '%F %a %h' d; stat -L -c %F l; stat nothing; stat -f -c '%l' f",
    "enotdir": "echo x > f; cat f/g; ls f/g/h; mkdir f/g; rm f/g; touch f/g; cd f; mv f/x y; ln -s x f/l; "
               "cat nodir/x; touch nodir/x",
    "gcc": "mkdir src obj; printf '#include \"m.h\"\\nint main(void){return puts(m())<0;}\\n' > src/main.c; "
           "printf '#include <stdio.h>\\nconst char *m(void);\\n' > src/m.h; "
           "printf '#include \"m.h\"\\nconst char *m(void){return \"built\";}\\n' > src/m.c; "
           "gcc -c -o obj/main.o src/main.c && gcc -c -o obj/m.o src/m.c && ar rcs obj/libm.a obj/m.o && "
           "gcc -o a.out obj/main.o obj/libm.a && cp a.out /tmp/a.out.$$ && /tmp/a.out.$$; rm -f /tmp/a.out.$$; "
           "gcc -o b.out src/*.c; cmp a.out b.out > /dev/null; stat -c %a a.out; gcc -o c.out src/bad.c; "
           "rm -rf obj *.out; ls",
    "make": "printf 'all: x y\\nx: z\\n\\tcat z > x\\ny: x\\n\\tcp x y\\nz:\\n\\techo made > z\\n' > Makefile; "
            "make; make; touch -d '+1 hour' z; make -s 2>/dev/null; cat x y; rm -f x y z",
    "git_free_diff_patch": "seq 1 100 > a; sed 's/5/five/' a > b; diff -u a b | sed '1,2s/\\t.*//' > p; "
                           "patch -s a p; cmp a b; ls",
    "bash_script_file": "printf 'echo running $1; echo more > made\\n' > s.sh; bash s.sh arg; . ./s.sh again; cat made",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_program(runner, name):
    runner.same(SCRIPTS[name])
