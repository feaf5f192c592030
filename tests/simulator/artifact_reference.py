"""A slow, plain second implementation of the FLOP-aware artifact rules, to compare the fast one with."""

from marconi_ext.profiles import paper

S, KV = paper.STATE_BYTES, paper.KV_BYTES_PER_TOKEN


class Plain:
    def __init__(self, key, parent, stamp):
        self.key, self.parent, self.stamp, self.kids = key, parent, stamp, {}


class PlainFlopAware:
    def __init__(self, capacity, alpha):
        self.capacity, self.alpha, self.clock, self.root = capacity, alpha, 0, Plain((), None, 0)

    def all(self, node=None):
        for kid in list((node or self.root).kids.values()):
            yield kid
            yield from self.all(kid)

    def total(self, node):
        return len(node.key) + (self.total(node.parent) if node.parent else 0)

    def match(self, key):
        self.clock += 1
        node, prefix, reusable, last = self.root, 0, 0, None
        while key and key[0] in node.kids:
            node = node.kids[key[0]]
            n = common(node.key, key)
            prefix, key = prefix + n, key[n:]
            if n == len(node.key):
                reusable, last = reusable + n, node
        if last:
            last.stamp = self.clock
        return prefix, reusable

    def serve(self, prompt, output):
        hit = self.match(prompt)[1]
        key = prompt + output
        self.clock += 1
        prefix, reusable = self.match(key)
        need = (2 if prefix > reusable else 1) * S + (len(key) - prefix) * KV
        used = sum(S + len(n.key) * KV for n in self.all())
        if used + need > self.capacity:
            self.evict(used + need - self.capacity)
        node = self.root
        while key:
            kid = node.kids.get(key[0])
            if kid is None:
                node.kids[key[0]] = Plain(key, node, self.clock)
                break
            n = common(kid.key, key)
            if n < len(kid.key):
                upper = Plain(kid.key[:n], node, self.clock)
                node.kids[key[0]] = upper
                kid.key, kid.parent = kid.key[n:], upper
                upper.kids[kid.key[0]] = kid
                kid = upper
            node, key = kid, key[n:]
        return hit

    def evict(self, wanted):
        self.clock += 1
        freed = 0
        while freed < wanted:
            nodes = [n for n in self.all() if len(n.kids) <= 1]
            if not nodes:
                return
            eff = scale([self.efficiency(n) for n in nodes])
            rec = scale([1 / (self.clock - n.stamp) for n in nodes])
            scores = [self.alpha * e + r for e, r in zip(eff, rec, strict=True)]
            victim = nodes[scores.index(min(scores))]
            if not victim.kids:
                del victim.parent.kids[victim.key[0]]
                freed += S + len(nodes[-1].key) * KV
            else:
                (kid,) = victim.kids.values()
                victim.parent.kids[victim.key[0]] = kid
                kid.key, kid.parent, kid.stamp = (
                    victim.key + kid.key,
                    victim.parent,
                    max(kid.stamp, victim.stamp),
                )
                freed += S

    def efficiency(self, node):
        total, own = self.total(node), len(node.key)
        flops = 24 * paper.mamba_flops(own)
        flops += 4 * (paper.attention_flops(total) - paper.attention_flops(total - own))
        flops += 28 * (paper.mlp_flops(total) - paper.attention_flops(total - own))
        return flops / (S + KV * total)


def common(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def scale(values):
    low, high = min(values), max(values)
    return [1.0] * len(values) if low == high else [(v - low) / (high - low) for v in values]
