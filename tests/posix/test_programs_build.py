# SPDX-License-Identifier: Apache-2.0
"""A C project on the mount: configured and built in a directory of its own, by make -j4 that calls itself, with a
static and a shared library; its checks run the programs from where they were built; installed, they run from there."""
import pytest

# A project as autoconf's are, in small: configure tries the compiler, writes config.h and a Makefile per directory.
PROJECT = r"""
mkdir -p src/lib src/util src/tests
cat > src/configure <<'X'
#!/bin/sh
set -e
srcdir=$(cd "$(dirname "$0")" && pwd); prefix=/usr/local
for argument; do case $argument in --prefix=*) prefix=${argument#*=};; esac; done
exec 5> config.log; echo "configure $*" >&5
check() {
  printf 'checking for %s... ' "$1"; printf '%s\nint main(void) { %s; return 0; }\n' "$2" "$3" > conftest.c
  if gcc -o conftest conftest.c >&5 2>&1 && ./conftest; then echo yes; echo "#define HAVE_$1 1" >> confdefs.h
  else echo no; echo "/* #undef HAVE_$1 */" >> confdefs.h; fi; rm -f conftest conftest.c
}
: > confdefs.h
check PREAD '#include <unistd.h>' 'char c; pread(0, &c, 0, 0)'
check NO_SUCH_CALL '' 'no_such_call()'
check MMAP '#include <sys/mman.h>' 'munmap(mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096)'
{ echo "/* made by configure */"; cat confdefs.h; } > config.h.new
if cmp -s config.h.new config.h; then echo config.h is unchanged; rm config.h.new; else mv config.h.new config.h; fi
rm confdefs.h
for file in Makefile lib/Makefile util/Makefile tests/Makefile; do
  mkdir -p "$(dirname $file)"; echo "creating $file"
  sed -e "s,@srcdir@,$srcdir,g;s,@top@,$PWD,g;s,@prefix@,$prefix,g" "$srcdir/$file.in" > "$file"
done
X
chmod +x src/configure
cat > src/Makefile.in <<'X'
all check install clean: ; @for d in lib util tests; do $(MAKE) --no-print-directory -s -C $$d $@ || exit 1; done
X
rules='
CFLAGS = -O -I@top@ -I@srcdir@/lib -MMD
%.o: ; gcc $(CFLAGS) -fPIC -c -o $@ $(DIR)/$(@:.o=.c)
clean:; rm -f *.o *.d *.a *.so* $(PROGRAMS) results
check install:
.PHONY: all check install clean
'
{ echo 'DIR = @srcdir@/lib'; echo 'all: libparts.a libparts.so'; echo "$rules"; cat <<'X'
O = $(foreach n,0 1 2 3 4 5 6 7,part$(n).o)
libparts.a: $O ; rm -f $@; ar rcs $@ $O; ranlib $@
libparts.so.1.0: $O ; gcc -shared -Wl,-soname,libparts.so.1 -o $@ $O
libparts.so: libparts.so.1.0 ; ln -sf $< libparts.so.1; ln -sf libparts.so.1 $@
install: all ; install -d @prefix@/lib; cp -P libparts.so* @prefix@/lib; install -m 644 libparts.a @prefix@/lib
-include $(wildcard *.d)
X
} > src/lib/Makefile.in
{ echo 'DIR = @srcdir@/util'; echo 'PROGRAMS = static shared'; echo 'all: $(PROGRAMS)'; echo "$rules"; cat <<'X'
static: sum.o ../lib/libparts.a ; gcc -o $@ $^
shared: sum.o ../lib/libparts.so ; gcc -o $@ sum.o -L../lib -lparts -Wl,-rpath,@top@/lib
installed: sum.o ; gcc -o $@ sum.o -L../lib -lparts -Wl,-rpath,'$$ORIGIN/../lib'
install: installed ; install -d @prefix@/bin; install -s installed @prefix@/bin/sum
X
} > src/util/Makefile.in
cat > src/tests/Makefile.in <<'X'
all install clean: ; rm -f results
check: static.t shared.t script.t ; cat $^ > results; rm $^; ! grep FAIL results
%.t: ; ../util/$(@:.t=) 10 | grep -q '^380$$' && echo "PASS $@" > $@ || echo "FAIL $@" > $@
script.t: ; LD_LIBRARY_PATH=../lib sh @srcdir@/tests/script.sh && echo "PASS $@" > $@
X
cat > src/tests/script.sh <<'X'
for n in 1 2 3; do ../util/shared $n | grep -q "^$((n * 8 + 300))\$" || exit 1; done
X
for n in 0 1 2 3 4 5 6 7; do
  printf '#include "config.h"\n#include "parts.h"\nint part%s(int n) { return n + %s0 + HAVE_MMAP; }\n' $n $n \
    > src/lib/part$n.c
done
{ for n in 0 1 2 3 4 5 6 7; do echo "int part$n(int n);"; done; } > src/lib/parts.h
cat > src/util/sum.c <<'X'
#include <stdio.h>
#include <stdlib.h>
#include "config.h"
#include "parts.h"
int main(int count, char **v) {
  int n = count > 1 ? atoi(v[1]) : 0;
  printf("%d\n", part0(n) + part1(n) + part2(n) + part3(n) + part4(n) + part5(n) + part6(n) + part7(n) + 12);
  return 0;
}
X
"""

BUILD = """
mkdir build; cd build; ../src/configure --prefix=$PWD/../inst; cat config.h; make -j4; echo "make $?"
make -j4 check; echo "check $?"; sort tests/results; util/static 1; util/shared 2; (cd /; $OLDPWD/util/shared 3)
make -q -C lib; echo "up to date $?"; touch ../src/lib/part3.c; rm lib/part3.o util/shared; make; util/shared 4
make -j4 install; echo "install $?"; ../inst/bin/sum 5; mv ../inst ../moved; ../moved/bin/sum 6; ls ../moved/lib
ar t ../moved/lib/libparts.a; nm lib/libparts.so.1.0 | grep -c ' T part'; objdump -p util/shared | grep -c NEEDED
../src/configure --prefix=$PWD/../inst | tail -1; make clean; cd ..; find build -type f | sort
rm -rf build moved inst src
"""


@pytest.mark.timeout(240)
def test_configure_make_check(runner):
    said = runner.same(PROJECT + BUILD, timeout=170).decode().splitlines()
    assert {"make 0", "check 0", "install 0", "up to date 0", "PASS script.t"} <= set(said)
