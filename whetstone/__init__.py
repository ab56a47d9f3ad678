"""The command `whetstone`: one module for each group of verbs.

    train      check, run, train, export, tune
    package    evaluate, register, verify, compare, predict
    release    image, release, rollback, history

A verb is a function that takes the parsed arguments. It imports what it needs when it is called,
so that `--help` is instant.
"""
