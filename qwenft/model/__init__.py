"""From samples to tensors and from files to a model; torch begins here."""

import logging

# peft imports bitsandbytes wherever it is installed, and this then warns of a CPU kernel that nothing here calls
# (bitsandbytes 0.50, backends/cpu/ops.py): it must be told before that import, so here and in no function.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
