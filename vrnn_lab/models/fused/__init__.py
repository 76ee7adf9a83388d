"""Small networks in long loops, differentiated by hand.

A solver evaluates one small network hundreds of times, each time on a few rows: what autograd keeps and launches for
each evaluation costs more than its matrix products. Here each evaluation has a place on a tape, the way back through
the loop carries the gradient of the state alone, and those of the weights are taken at the end, of all evaluations
at once. The numbers are autograd's, to rounding.

A tape longer than TAPE bytes is not kept: the way back makes it again from the states, some steps at a time.
"""
