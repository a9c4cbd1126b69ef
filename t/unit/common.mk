# What programs need that are built of our modules without a server.
# Included by t/unit/Makefile and t/fuzz/Makefile.

ROOT := $(dir $(lastword $(MAKEFILE_LIST)))../..
SRC = $(ROOT)/src
FUZZ = $(ROOT)/t/fuzz
UNIT = $(ROOT)/t/unit

INCLUDEDIR := $(shell $(PG_CONFIG) --includedir-server)
PKGLIBDIR := $(shell $(PG_CONFIG) --pkglibdir)
LIBDIR := $(shell $(PG_CONFIG) --libdir)

# Where the static libraries of PostgreSQL's tools are depends on who packed it.
PGLIBS = $(firstword $(wildcard $(PKGLIBDIR)/libpgcommon.a \
		$(PKGLIBDIR)/../libpgcommon.a $(LIBDIR)/libpgcommon.a) \
		libpgcommon.a-not-found)
LIBS = $(PGLIBS) $(dir $(PGLIBS))libpgport.a -lm
# broker.c, and so what includes it, needs these besides.
BROKER_LIBS = -lrabbitmq -lssl -lcrypto

UNIT_CPPFLAGS = -I$(SRC) -I$(FUZZ) -I$(UNIT) -isystem $(INCLUDEDIR) $(CPPFLAGS)
UNIT_CFLAGS = -std=gnu99 -g -O1 -Wall -Wextra -Wno-ignored-attributes \
		-fno-strict-aliasing -fwrapv $(SANITIZE) $(CFLAGS)

COMPILE = $(CC) $(UNIT_CPPFLAGS) $(UNIT_CFLAGS) -c -o $@ $<
HEADERS = $(wildcard $(SRC)/*.h $(FUZZ)/*.h $(UNIT)/*.h)

# The pure modules are also those of tools; broker.c never is, so what
# includes it is compiled as the server's.
$(BUILD_DIR)/broker_fuzz.o: $(FUZZ)/broker_fuzz.c $(SRC)/broker.c $(SRC)/channel.c \
		$(HEADERS) \
		| $(BUILD_DIR)
	$(COMPILE) -Wno-unused-parameter

$(BUILD_DIR)/%.o: $(SRC)/%.c $(HEADERS) | $(BUILD_DIR)
	$(COMPILE) -DFRONTEND

$(BUILD_DIR)/%.o: $(FUZZ)/%.c $(HEADERS) | $(BUILD_DIR)
	$(COMPILE) -DFRONTEND

$(BUILD_DIR)/%.o: $(UNIT)/%.c $(HEADERS) | $(BUILD_DIR)
	$(COMPILE) -DFRONTEND

$(BUILD_DIR):
	mkdir -p $@

clean:
	rm -rf $(BUILD_DIR)

.SECONDARY:
.PHONY: all check clean
