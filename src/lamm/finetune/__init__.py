"""Fine-tuning: a pre-trained potential made good at one's own data (Sec. 4.4).

`rules` chooses what the user doesn't, `data` splits and examines the structures, `ranking` finds
the pre-training head that suits them, `run` trains, `card` says what came out.
"""

from lamm.finetune.further import Request
from lamm.finetune.request import config_for
from lamm.finetune.run import finetune, start_from
from lamm.train.start import check_architecture

__all__ = ["Request", "check_architecture", "config_for", "finetune", "start_from"]
