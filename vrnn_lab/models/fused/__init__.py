"""Differentiate small networks in long loops by custom autograd functions (fused).

A solver evaluates one small network hundreds of times, each time on a few rows, and autograd's bookkeeping for each
evaluation costs more than its matrix products. Here a tape stores the activations of every evaluation, the backward
pass through the loop carries the gradient of the state alone, and the gradients of the weights are computed at the
end, for all evaluations at once. The results equal autograd's, up to rounding.

A tape longer than TAPE bytes is not kept: the backward pass recomputes it from the states, some steps at a time.
"""
