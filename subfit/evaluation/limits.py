"""How many measurements an interval needs; of fewer there is none, for it would say more than they do."""

NORMAL = 1.96  # standard errors to either side, in a 95 % interval
FEWEST_WINDOWS = 10  # of a bootstrap: its interval has the mean of 10 normal values in about 90 % of the cases, of 5 in 85 %
FEWEST_ITEMS = 30  # of a task, for the mean of its zeros and ones to be about normal
FEWEST_SEEDS = 3
