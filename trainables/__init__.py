"""One file a method: a `Config`, and a class whose `steps()` yields the losses of one optimizer step after another.

A trainable reads like the method section of its paper. It imports parts from `energymt` and holds the choices; it never
imports a search space. `energymt train NAME` finds the file of that name here.
"""
