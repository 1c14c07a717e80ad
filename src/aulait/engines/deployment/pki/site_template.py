"""The text of a new site file: every key with its default, and what it is for."""

from __future__ import annotations

from aulait.core.errors import ConfigError, require
from aulait.engines.deployment.protocol.site_names import address_problem, name_problem

TEMPLATE = '''# What this site is and what it allows. It stays here; nobody else needs to read it.
# Paths are relative to this file.

[site]
name = "@NAME@"                # as the coordinator enrols this site; also the client's name
server = "@SERVER@"            # HOST:PORT of the coordinator
state = "state"                # folder, mode 0700: memory of runs, socket, log

[keys]
private = "site-key"           # never leaves this machine
public = "site-key.pub"        # send this one to the coordinator, which enrols it
authority = "ca.pem"           # from the coordinator: by it this site knows the server
orders = "order-key.pub"       # from the coordinator: by it this site verifies every request

[data]
source = "notes.jsonl"         # .jsonl, .json, .csv, .tsv (.gz), .parquet
text = "text"                  # the field that is learnt; or prompt = "q" and response = "a";
                               # or messages = "messages", the field of a conversation
# label = "label"              # a field with a public label
# unit_field = "patient"       # this site's name for what a run calls privacy.unit_field
client = ""                    # a field: only rows where it is the name above; "": all rows

# The names a coordinator may ask for = what is loaded here: a built-in name ("brew", "smollm2"), a
# Hugging Face id, or a folder or .gguf file, which begins with ".", "~" or "/".
[models]
brew = "brew"

[embedders]
minilm = "minilm"

# The other sites with which this one adds up secretly (runs of privacy.trust = "secure"), and who
# each is: what "aulait keys sums" tells there, read out by telephone. A sum with anybody else is
# refused, so the coordinator cannot invent sites around this one.
[peers]
# ward-b = "0123456789abcdef..."

# A run that asks for more than this is refused by this site, whatever the coordinator says.
[limits]
# "local": trains here; "proxy": votes on synthetic texts; "split": the client half of a split model
roles = ["local", "proxy"]
methods = []                   # names of methods; empty: all (aulait list)
privacy = true                 # refuse runs without privacy
epsilon = 10.0                 # largest epsilon of one run
delta = 1e-3                   # largest delta; far below one over the protected clients or records
lifetime_epsilon = 20.0        # largest epsilon of all runs together, whoever coordinates them
lifetime_delta = 2e-3          # largest delta of all runs together
units = ["client", "record"]   # what a run may protect
# whom a run that protects clients may trust with updates: the "server", or nobody ("secure")
trust = ["server", "secure"]
sum_sites = 3                  # fewest sites that a secure sum may be released of
colluders = 0                  # fewest sites with the coordinator that a secure sum must withstand
clip = 1e6                     # largest bound of an update
records = 1000                 # most records of this site that a run may use
rounds = 1000                  # most rounds of a stage
steps = 1000                   # most optimiser steps in a round
batch = 256                    # most sequences in a step
rank = 256                     # largest LoRA rank
delta_share = 0.1              # unit "record": largest delta times the number of units here
context = 4096                 # most tokens of a sequence
rows = 256                     # most sequences in one pass
lr = 100.0                     # largest learning rate
candidates = 20000             # most candidates of a vote
neighbours = 100               # most candidates that one record votes for
width = 4096                   # most numbers in the embedding of a candidate
message_bytes = 2147483648     # largest message accepted
idle_s = 900                   # the base is unloaded when no message came for so long
threads = 0                    # processor threads; 0: torch's choice
# Measure held-out records: without privacy the sums are told to the server, with it they stay here.
evaluate = true
'''


def site_file_text(name: str, server: str) -> str:
    """A commented site file with every default written out.

    Raises:
        ConfigError: the name or the address is wrong.
    """
    problems = [line for line in (name_problem(name), address_problem(server)) if line]
    require(not problems, ConfigError, "\n".join(problems))
    return TEMPLATE.replace("@NAME@", name).replace("@SERVER@", server)
