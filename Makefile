# tpc_amqp: PostgreSQL databases that commit together over RabbitMQ.
#
#   make, make install     as with any extension (PG_CONFIG=… chooses the
#                          PostgreSQL installation)
#   make demo, make test   need nothing but make: they install what is
#                          missing, build into a temporary directory and run
#   make deps              the Debian packages that need to be there
#   make matrix            whatever can happen to every process at every step of
#                          the protocol (make test does a part of it)
#   make fuzz SECONDS=60   feed made-up messages to what reads them
#   make valgrind          some of the tests with the servers under valgrind
#   make indent            format the sources as PostgreSQL's are
#   make model             check the model of the protocol (doc/model)
#
#   FAILPOINTS=1           build in the places where tests make it fail
#   WERROR=                let warnings be warnings

EXTENSION = tpc_amqp
MODULE_big = tpc_amqp
DATA = $(sort $(wildcard tpc_amqp--*.sql))
PGFILEDESC = "tpc_amqp - databases that commit together over RabbitMQ"
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
EXTRA_CLEAN = $(OBJS:.o=.d) .build-flags

WERROR ?= -Werror
FAILPOINTS =

PG_CONFIG = pg_config
# Empty where PostgreSQL, or its development files, are not installed.
PGXS := $(wildcard $(shell $(PG_CONFIG) --pgxs 2>/dev/null))

# PostgreSQL's headers are system headers: what they warn of is not ours.
# Callbacks and functions called from SQL have their parameters given to them,
# whether they use them or not.
PG_CPPFLAGS = -Isrc -isystem $(shell $(PG_CONFIG) --includedir-server) \
	$(if $(filter-out 0,$(FAILPOINTS)),-DTPC_FAILPOINTS)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter $(WERROR) -MMD -MP
SHLIB_LINK = -lrabbitmq -lssl -lcrypto

# "make installcheck" runs these against a server that is running, with
# TPC_BROKER_PORT in the environment.  "make test" brings server and broker.
REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
ISOLATION = $(patsubst specs/%.spec,%,$(sort $(wildcard specs/*.spec)))

ifneq ($(PGXS),)

# Bitcode for inlining into queries would need clang and gain nothing here.
override with_llvm = no

include $(PGXS)

# Objects depend on the headers they include, and on how they were built.
-include $(wildcard $(OBJS:.o=.d))
$(OBJS): .build-flags
.build-flags: force-look
	@echo '$(CC) $(CPPFLAGS) $(CFLAGS)' | cmp -s - $@ || \
		echo '$(CC) $(CPPFLAGS) $(CFLAGS)' > $@

else

all install installcheck:
	@echo "There is no PostgreSQL to build for: pg_config (here: $(PG_CONFIG))" >&2
	@echo "is missing or does not come with PGXS.  Try \"make deps\"." >&2
	@exit 1

clean:
	rm -f $(OBJS) $(EXTRA_CLEAN) $(MODULE_big).so

endif

.DEFAULT_GOAL = all

# Settings that these take are in their scripts: KEEP=1, TESTS='t/x.pl …'.
export PG_CONFIG
demo:
	@scripts/demo

test:
	@scripts/run-tests

# BENCH=quick and other settings: bench/README.md
bench:
	@bench/run
.PHONY: bench

# t/TpcMatrix.pm.  Half an hour.
matrix:
	@TPC_MATRIX=full TPC_TAP_SECONDS=7000 \
		TESTS='t/030_crash.pl t/032_prepared_crash.pl t/033_joined_crash.pl' \
		JOBS=$(or $(JOBS),3) scripts/run-tests

fuzz:
	@FUZZ_SECONDS='$(SECONDS)' scripts/fuzz

valgrind:
	@scripts/valgrind

# SECONDS=600 SEED=…: torture/README.md
torture:
	@TORTURE_SECONDS=$(or $(SECONDS),600) TORTURE_SEED=$(SEED) torture/run
.PHONY: torture

deps:
	@scripts/deps

indent:
	@scripts/indent

# Minutes; needs spin.  TRAILS=1 shows how mutations are refuted.
model:
	@scripts/model

force-look:

.PHONY: all install installcheck clean demo test matrix fuzz valgrind deps indent model force-look
