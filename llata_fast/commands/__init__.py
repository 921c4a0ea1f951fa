"""`python -m llata_fast COMMAND`: a module each.

A command's module holds its help as docstring, `add_arguments(parser)` and `run(options)`; the module's name is the
command's. To add one, write the module and list it here, in the order of the help.
"""

from . import benchmark, bundle, corpus, doctor, evaluate, merge, plan, predict, reshard

COMMANDS = (predict, evaluate, merge, benchmark, bundle, corpus, plan, reshard, doctor)
