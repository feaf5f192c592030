"""α as the paper finds it: a window of requests, then the best of a grid."""

from marconi_ext.policies.paper.tuner import Marconi
from marconi_ext.policies.table.checkpoints import CheckpointTable, Fate, Kind


def test_marconi_tunes_once_and_prefers_depth_where_depth_pays() -> None:
    """Two deep records come back every tenth request, a stream of shallow ones never does. With two slots LRU
    has nothing; an α above 0 keeps the deep ones."""
    rule = Marconi(multiplier=5)
    table, deep = CheckpointTable(), []
    for tick in range(1, 400):
        path = [deep[tick // 10 % 2]] if deep and tick % 10 == 0 else []
        rule.request(table, path, path[-1] if path and table.live[path[-1]] else -1, tick)
        if len(deep) < 2 or tick % 10:
            row = table.add(-1, 5000 if len(deep) < 2 else 10, Kind.LAST_TOKEN, tick)
            if len(deep) < 2:
                deep.append(row)
        else:
            row = path[0]
        rule.offered(table, row, tick)
        if table.live[row]:
            continue
        if table.num_live >= 3:
            rows = table.live_rows()
            table.set_gone(int(rows[rule.scores(table, rows, tick).argmin()]), Fate.EVICTED)
        table.set_live(row, tick)
    assert rule.tuned and rule.alpha > 0
    assert rule.parameters()["alpha"] == rule.alpha
