"""Small models of random weights, one of each family of recurrence that is served."""
