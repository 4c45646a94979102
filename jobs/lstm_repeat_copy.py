"""The LSTM that the Neural Turing Machine is compared with on repeat copy (Graves et al. 2014, table 3).

Everything but the network is as in ``ntm_repeat_copy.py``.
"""

from ntm_repeat_copy import experiment as ntm_experiment

from distmeta import NTM, lstm

experiment = ntm_experiment.replace(learner=NTM(lstm(size=512, layers=3)))
