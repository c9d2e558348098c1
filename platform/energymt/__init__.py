"""Machine translation trained by energies: follow the gradient of what says how bad a translation is.

The shape legend. A name that ends in capitals says its axes: `logits_BTV` is [sentences, target tokens, vocabulary].

    B  sentences of a batch
    S  source tokens, the end token included
    T  target tokens, without start and end token
    U  target positions with the end token (T + 1)
    V  vocabulary (the width of the logits)
    D  width of an embedding or a hidden state
    K  candidates or samples of one source sentence
    G  sources with candidates (a group each)
    P  parts of a loss, each with a gradient of its own
    A  values of α, the length of a perturbation
    R  rows: any selection or repetition of sentences
    L  lengths that a length head tells apart

The map of the house. Science first: nothing in this block knows of Ray or MLflow.

    records      what flows between the rooms: frozen dataclasses, a shape for each field
    operators    logits -> relaxed tokens (SX STL SG ST GX), and relaxed tokens -> expected embeddings
    projected    the same from last hidden states, in chunks of a large vocabulary
    policy       kernels of REINFORCE and PPO
    energies     E(source, prediction) -> energy_B, differentiable, lower is better
    models       the translators: recurrent, transformer, masked, speech; the quality estimator; the proxy
    data         corpora, recordings, vocabularies, the bridge between two, batches, and the generated toy language
    decoding     beam search, mask-predict, sampling, re-ranking, perturbed encoder states
    metrics      translation quality, error rates, correlations, significance, signs of gaming

Around it: how a run lives.

    training     the one training loop
    semisupervised  labelled and unlabelled losses in one step; `quality`, `balance`, `monitor`, `lessons` are its parts
    tracking     MLflow, the model registry
    pool         the energy pool: actors that serve scores and gradients
    cluster      Ray: start, check, launch
    cli          the command line
    errors       what a user can act on, with the exit code of each

One-way streets: `search_spaces` -> `trainables` -> `energymt`. Importing `energymt` loads nothing heavy.
"""

__version__ = "0.1.0"
