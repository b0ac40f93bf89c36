"""The static picture of a finished run, for READMEs and chat: report.svg and report.png beside the page."""

import importlib
import importlib.util
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from slimsweep.ledger.columns import shown_columns
from slimsweep.ledger.measures import images_of, measure_of
from slimsweep.ledger.run import Run
from slimsweep.ledger.tables import RESULTS
from slimsweep.report.pareto import UNTRAINED, best_rates, by_series, knee, pareto_front, summarize, trained_first
from slimsweep.report.run_tables import RunTables
from slimsweep.report.styles import looks
from slimsweep.report.uncertainty import SPLITS, front_tolerance, with_binomial

INK, MUTED, GRID, BACKGROUND = "#1d2024", "#5c646e", "#e2e5e9", "#ffffff"  # the page's colours on a light background


def write_picture(run: Run, tables: RunTables) -> str | None:
    """Write report.svg and report.png to the run's folder, with kaleido and the browser that it finds.

    Returns:
        One sentence that says why there is no picture; None where there is one.
    """
    if tables.results[measure_of(tables.results).test].notna().sum() == 0:
        return "no static picture was written: no point has a result"
    if not kaleido_here():
        return "no static picture was written: it needs kaleido (pip install kaleido) and a Chrome or Chromium"
    kaleido = importlib.import_module("kaleido")
    figure = front_figure(tables).to_plotly_json()
    try:
        for kind, scale in (("svg", 1), ("png", 2)):
            options = {"format": kind, "width": 900, "height": 520, "scale": scale}
            # Without mathjax: kaleido would fetch it from the network.
            run.write_report(kind, kaleido.calc_fig_sync(figure, opts=options, kopts={"mathjax": False}))
    except Exception as problem:  # anything that kaleido or the browser raise: a missing picture must not fail a finished sweep
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        return f"no static picture was written: {lines[0]}"
    return None


def kaleido_here() -> bool:
    """Whether kaleido is installed; it is optional, since it needs a browser too."""
    return importlib.util.find_spec("kaleido") is not None


def front_figure(tables: RunTables) -> go.Figure:
    """The measure on test against MACs as a plotly figure: means and standard errors over seeds, and the Pareto front."""
    measure = measure_of(tables.results)
    quality = next(column for column in shown_columns(RESULTS) if column.name == measure.test)
    by = ("method", "unit", "budget", "shares") if "shares" in tables.results else ("method", "unit", "budget")
    means = summarize(by_series(best_rates(tables.results)), by=by, metrics=("macs", measure.test))
    means = means[means[f"{measure.test}_mean"].notna()]
    if measure.test in SPLITS:
        images = pd.Series(images_of(tables.results, tables.known_data).get("test", np.nan), index=means.index)
        means[f"{measure.test}_se"] = with_binomial(means[f"{measure.test}_mean"], means[f"{measure.test}_se"], images)
    scale, unit = next(((s, u) for s, u in ((1e9, "GMACs"), (1e6, "MMACs")) if means["macs_mean"].max() >= s), (1.0, "MACs"))
    x, y = "macs_mean", f"{measure.test}_mean"
    front = pareto_front(trained_first(means), x, y, tolerance=front_tolerance(tables.results, "macs"))
    figure = go.Figure()
    figure.add_scatter(
        x=front[x] / scale,
        y=front[y],
        mode="lines",
        line={"shape": "hv", "width": 11, "color": INK},
        opacity=0.09,
        showlegend=False,
    )
    for method, look in looks(sorted(means["method"].unique())).items():
        group = means[means["method"] == method]
        own = pareto_front(group, x, y)
        dash = "dot" if method.endswith(UNTRAINED) else "dash" if look.hollow else "solid"
        figure.add_scatter(
            x=own[x] / scale,
            y=own[y],
            mode="lines",
            line={"shape": "hv", "width": 2, "color": look.light, "dash": dash},
            showlegend=False,
        )
        figure.add_scatter(
            x=group[x] / scale,
            y=group[y],
            mode="markers",
            name=_plotly_text(method),
            marker={
                "size": 12,
                "color": look.light,
                "symbol": look.symbol,
                "opacity": np.where(group.index.isin(front.index), 1.0, 0.42).tolist(),
            },
            error_y={"type": "data", "array": group[f"{measure.test}_se"].fillna(0).tolist(), "thickness": 1.5, "width": 4},
        )
    untouched = _first(tables.results[measure.untouched_column]) if measure.untouched_column else None
    if untouched is not None:
        figure.add_hline(
            y=untouched,
            line={"color": MUTED, "dash": "dot", "width": 1.25},
            annotation={"text": f"dense, untouched: {measure.text(untouched)}", "font": {"color": MUTED}},
            annotation_position="bottom right",
        )
    bend = knee(front, x, y)
    if bend is not None:
        figure.add_annotation(
            x=bend[x] / scale, y=bend[y], text="knee", ax=-34, ay=-32, arrowhead=0, arrowcolor=MUTED, standoff=9
        )
    axis = {"gridcolor": GRID, "zeroline": False}
    figure.update_layout(
        template="none",
        title={
            "text": _plotly_text(f"{tables.name}: {_first(tables.results['model'])} on {_first(tables.results['data'])}"),
            "font": {"size": 17},
            "x": 0,
            "xref": "paper",
        },
        font={"family": "Inter, Segoe UI, Helvetica Neue, Arial, Liberation Sans, sans-serif", "size": 14, "color": INK},
        margin={"l": 66, "r": 24, "t": 64, "b": 64},
        xaxis={**axis, "title": {"text": f"{unit} per image"}},
        yaxis={**axis, "title": {"text": ", ".join(filter(None, (quality.title, quality.unit)))}},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        paper_bgcolor=BACKGROUND,
        plot_bgcolor=BACKGROUND,
    )
    return figure


def _first(column: pd.Series) -> Any:
    """The first value that is known, or None."""
    known = column.dropna()
    return known.iloc[0] if len(known) else None


def _plotly_text(text: Any) -> str:
    """Text escaped for plotly, which reads some HTML in labels."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
