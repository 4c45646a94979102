"""The LSTM that the Neural Turing Machine is compared with on copy (Graves et al. 2014, table 3).

Everything but the network is as in ``ntm_copy.py``.
"""

from ntm_copy import experiment as ntm_experiment

from distmeta import NTM, lstm

experiment = ntm_experiment.replace(learner=NTM(lstm(size=256, layers=3)))
