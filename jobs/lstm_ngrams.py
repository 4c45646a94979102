"""The LSTM that the Neural Turing Machine is compared with on dynamic n-grams (Graves et al. 2014, table 3).

Everything but the network is as in ``ntm_ngrams.py``.
"""

from ntm_ngrams import experiment as ntm_experiment

from distmeta import NTM, lstm

experiment = ntm_experiment.replace(learner=NTM(lstm(size=128, layers=3)))
