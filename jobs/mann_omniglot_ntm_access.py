"""The ablation of Santoro et al. (2016): MANN's network on Omniglot with the addressing of a Neural Turing Machine.

Everything but the access to the memory is as in ``mann_omniglot.py``, overrides included: compare the two with the same
``--set``. A step takes about two and a half times as long, so the same budget of minutes is fewer steps.
"""

from mann_omniglot import experiment as lru

from distmeta import MANN, mann

experiment = lru.replace(learner=MANN(mann(size=200, slots=128, width=40, reads=4, access="ntm")))
