"""The LSTM that the Neural Turing Machine is compared with on priority sort (Graves et al. 2014, table 3).

Everything but the network is as in ``ntm_priority_sort.py``.
"""

from ntm_priority_sort import experiment as ntm_experiment

from distmeta import NTM, lstm

experiment = ntm_experiment.replace(learner=NTM(lstm(size=128, layers=3)))
