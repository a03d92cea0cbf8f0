"""PPO as the papers write it: one row, one token, one Python float at a time. Slow, and shares no code with `learner`.

A row is a list over padded slots; `live` says which slots hold tokens. Everything is gathered into dense lists of live
tokens first, so that padding cannot play a part.
"""

from math import exp


def dense(row, live):
    return [x for x, alive in zip(row, live, strict=True) if alive]


def padded(dense_row, live):
    tokens = iter(dense_row)
    return [next(tokens) if alive else 0.0 for alive in live]


def rewards(score, logprobs, ref_logprobs, live, kl_coef):
    """arXiv:1909.08593, eq. 2: R = r - beta * log(pi / rho), the log-ratio spread over the tokens it sums."""
    out = [-kl_coef * (lp - ref) for lp, ref in zip(dense(logprobs, live), dense(ref_logprobs, live), strict=True)]
    out[-1] += score
    return padded(out, live)


def advantages(rewards, values, live, gamma, lam, bootstrap):
    """arXiv:1506.02438, eq. 16, as the explicit sum over k of (gamma * lambda)^k * delta_{t+k}; O(T^2)."""
    r = dense(rewards, live)
    v = [*dense(values, live), bootstrap]
    T = len(r)
    delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(T)]
    return padded([sum((gamma * lam) ** k * delta[t + k] for k in range(T - t)) for t in range(T)], live)


def discounted_returns(rewards, live, gamma, bootstrap):
    r = [*dense(rewards, live), bootstrap]
    T = len(r) - 1
    return padded([sum(gamma ** (k - t) * r[k] for k in range(t, T + 1)) for t in range(T)], live)


def clip(x, low, high):
    return min(max(x, low), high)


def policy_objective(logprobs, old_logprobs, advantages, live, eps):
    """arXiv:1707.06347, eq. 7, summed over the row's tokens; to be maximised."""
    total = 0.0
    for lp, old, A in zip(dense(logprobs, live), dense(old_logprobs, live), dense(advantages, live), strict=True):
        r = exp(lp - old)
        total += min(r * A, clip(r, 1 - eps, 1 + eps) * A)
    return total


def policy_objective_gradient(logprobs, old_logprobs, advantages, live, eps):
    """Of `policy_objective`, with respect to each logprob: r * A, and 0 where the clipped term is the smaller."""
    out = []
    for lp, old, A in zip(dense(logprobs, live), dense(old_logprobs, live), dense(advantages, live), strict=True):
        r = exp(lp - old)
        is_clipped = (A > 0 and r > 1 + eps) or (A < 0 and r < 1 - eps)
        out.append(0.0 if is_clipped else r * A)
    return padded(out, live)


def value_error(values, old_values, returns, live, eps):
    total = 0.0
    for v, old, R in zip(dense(values, live), dense(old_values, live), dense(returns, live), strict=True):
        near = clip(v, old - eps, old + eps)
        total += 0.5 * max((v - R) ** 2, (near - R) ** 2)
    return total


def value_error_gradient(values, old_values, returns, live, eps):
    out = []
    for v, old, R in zip(dense(values, live), dense(old_values, live), dense(returns, live), strict=True):
        near = clip(v, old - eps, old + eps)
        out.append(0.0 if (near - R) ** 2 > (v - R) ** 2 else v - R)
    return padded(out, live)


def k2_sum(logprobs, ref_logprobs, live):
    """Schulman's k2: (log r)^2 / 2."""
    return sum((lp - ref) ** 2 / 2 for lp, ref in zip(dense(logprobs, live), dense(ref_logprobs, live), strict=True))


def k3_sum(logprobs, ref_logprobs, live):
    """Schulman's k3: (r - 1) - log r with r = p / q = exp(ref_logprob - logprob)."""
    pairs = zip(dense(logprobs, live), dense(ref_logprobs, live), strict=True)
    return sum((exp(ref - lp) - 1) - (ref - lp) for lp, ref in pairs)


def k1_sum(logprobs, ref_logprobs, live):
    return sum(lp - ref for lp, ref in zip(dense(logprobs, live), dense(ref_logprobs, live), strict=True))


def variance(xs):
    mean = sum(xs) / len(xs)
    return sum((x - mean) ** 2 for x in xs) / len(xs)


def response_return(score, logprobs, ref_logprobs, live, kl_coef):
    """arXiv:2402.14740: R(x, y) = r(x, y) - beta * log(pi(y | x) / pi_ref(y | x))."""
    pairs = zip(dense(logprobs, live), dense(ref_logprobs, live), strict=True)
    return score - kl_coef * sum(lp - ref for lp, ref in pairs)


def leave_one_out(group):
    """RLOO of arXiv:2402.14740, for the returns of one prompt's responses."""
    out = []
    for i, mine in enumerate(group):
        others = [x for j, x in enumerate(group) if j != i]
        out.append(mine - sum(others) / len(others))
    return out


def normalised(group, eps):
    """arXiv:2402.03300, section 4.1.2, with the standard deviation of a sample."""
    mean = sum(group) / len(group)
    std = (sum((x - mean) ** 2 for x in group) / (len(group) - 1)) ** 0.5
    return [(x - mean) / (std + eps) for x in group]


def bounded_objective(lp, old, A, low, high, dual):
    """Of a token: clip-higher (arXiv:2503.14476) in the dual clip (arXiv:1912.09729, eq. 5); and its slope."""
    r = exp(lp - old)
    clipped = clip(r, 1 - low, 1 + high)
    value, slope = (r * A, r * A) if r * A <= clipped * A else (clipped * A, 0.0)
    if A < 0 and dual is not None and dual * A > value:
        return dual * A, 0.0
    return value, slope


def decoupled_objective(lp, proximal, behaviour, A, eps, cap):
    """Of a token: AReaL, arXiv:2505.24298, eq. 5, its first factor cut at `cap`; and its slope in lp."""
    weight = min(exp(proximal) / exp(behaviour), cap)
    r = exp(lp) / exp(proximal)
    clipped = clip(r, 1 - eps, 1 + eps)
    return (weight * r * A, weight * r * A) if r * A <= clipped * A else (weight * clipped * A, 0.0)
