"""One script per question, one table as answer: ratios and medians from one run, never times from another machine."""
