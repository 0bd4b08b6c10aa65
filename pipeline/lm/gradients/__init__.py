"""Per-sample gradients of a language model: dot products, norms and curvature.

The loss of a sample is the mean NLL of its counted tokens (nats per token), and a direction is a
tensor for each parameter name. `samples` holds the losses, `oracle` the plain definitions, `ghost`
dot products and norms without per-sample gradients, `hessian` Hessian-vector products.
"""
