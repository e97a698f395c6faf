// Draws a curve as SVG: losses of single steps faint, their running mean strong. Knows nothing of where the numbers come from.
(function () {
    "use strict";
    const ti = (window.textualInversion = window.textualInversion || {});
    const HEIGHT = 232, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 26;

    // Columns of a point: step, loss, smoothed loss, learning rate, vector norm.
    const KINDS = {
        loss: { label: "Loss", faint: 1, strong: 2, zero: false, evaluated: true },
        norm: { label: "Vector norm", faint: null, strong: 4, zero: false },
        rate: { label: "Learning rate", faint: null, strong: 3, zero: true },
    };
    ti.chartKinds = KINDS;
    const EVALUATED = { label: "Error on the same pictures and noise", faint: 2, strong: 2, zero: false };

    // The scale of the evaluations; the mean of single steps, which lies elsewhere, is cut at the edge.
    function boundsOf(values) {
        const low = Math.min(...values), high = Math.max(...values), margin = (high - low || high || 1) * 0.12;
        return [Math.max(0, low - margin), high + margin];
    }

    ti.number = function (value) {
        if (value === null || value === undefined) return "–";
        if (value === 0) return "0";
        const size = Math.abs(value);
        return size < 1e-3 || size >= 1e5 ? value.toExponential(1).replace("e-", "e−").replace("e+", "e") : String(Number(value.toPrecision(3)));
    };

    function ticks(low, high, about) {
        const raw = (high - low) / about || 1;
        const power = 10 ** Math.floor(Math.log10(raw));
        const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
        const found = [];
        for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
        return found;
    }

    function quantile(sorted, share) {
        return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
    }

    // Single steps jump far; the scale holds nearly all of them and the whole mean, the rest is cut at the edge.
    function bounds(points, kind) {
        const strong = points.map((point) => point[kind.strong]).filter((value) => value !== null);
        const faint = kind.faint ? points.map((point) => point[kind.faint]).filter((value) => value !== null).sort((a, b) => a - b) : strong;
        if (!strong.length) return [0, 1];
        const spread = kind.faint ? [quantile(faint, 0.02), quantile(faint, 0.98)] : strong;
        let low = Math.min(...strong, ...spread), high = Math.max(...strong, ...spread);
        if (kind.zero) low = 0;
        const margin = (high - low || Math.abs(high) || 1) * 0.08;
        return [kind.zero || low - margin < 0 ? Math.max(0, low - margin) : low - margin, high + margin];
    }

    function path(points, column, x, y) {
        let drawn = "", up = true;
        for (const point of points) {
            if (point[column] === null) { up = true; continue; }
            drawn += (up ? "M" : "L") + x(point[0]).toFixed(1) + " " + y(point[column]).toFixed(1);
            up = false;
        }
        return drawn;
    }

    // Returns an SVG element `width` wide; `onpick(point or null)` is called as the pointer moves over it.
    // `evaluations` are [step, error on pictures and noise that stay the same]; where there are some, they are the loss that counts.
    // `strip.marked` is the step of the preview that is shown (null = none), `strip.onclick(step)` is called for a click.
    ti.chart = function (points, first, until, kindName, width, onpick, evaluations, strip) {
        const given = KINDS[kindName], el = ti.el;
        const measured = given.evaluated ? (evaluations || []).filter((point) => point[1] !== null) : [];
        const kind = measured.length > 1 ? EVALUATED : given;
        const [low, high] = kind === EVALUATED ? boundsOf(measured.map((point) => point[1])) : bounds(points, kind);
        const right = Math.max(until, points.length ? points[points.length - 1][0] : 0, first + 1);
        const x = (step) => LEFT + ((step - first) / (right - first)) * (width - LEFT - RIGHT);
        const y = (value) => TOP + (1 - (Math.min(Math.max(value, low), high) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
        const svg = el("svg", { class: "ti-chart", viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": kind.label + " by step" });
        for (const at of ticks(low, high, 4)) {
            svg.append(el("line", { class: "ti-grid", x1: LEFT, x2: width - RIGHT, y1: y(at), y2: y(at) }));
            svg.append(el("text", { class: "ti-tick", x: LEFT - 8, y: y(at) + 4, "text-anchor": "end" }, ti.number(at)));
        }
        for (const at of ticks(first, right, width < 420 ? 4 : 6)) {
            if (at !== Math.round(at)) continue;
            svg.append(el("text", { class: "ti-tick", x: x(at), y: HEIGHT - 6, "text-anchor": x(at) > width - 34 ? "end" : "middle" }, String(at)));
        }
        if (kind.faint) svg.append(el("path", { class: "ti-faint", d: path(points, kind.faint, x, y) }));
        if (kind === EVALUATED) {
            svg.append(el("path", { class: "ti-strong ti-evaluated", d: path(measured, 1, x, y) }));
            for (const [step, error] of measured) svg.append(el("circle", { class: "ti-end", cx: x(step), cy: y(error), r: 3.5 }));
        } else svg.append(el("path", { class: "ti-strong", d: path(points, kind.strong, x, y) }));
        if (points.length && kind !== EVALUATED) {
            const end = points[points.length - 1];
            if (end[kind.strong] !== null) svg.append(el("circle", { class: "ti-end", cx: x(end[0]), cy: y(end[kind.strong]), r: 4 }));
        }
        const { marked, onclick } = strip || {};
        if (marked !== null && marked !== undefined && marked >= first && marked <= right) {
            svg.append(el("line", { class: "ti-marked", x1: x(marked), x2: x(marked), y1: TOP, y2: HEIGHT - BOTTOM }));
        }
        const hair = el("line", { class: "ti-hair", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
        svg.append(hair);
        const stepAt = (event) => {
            const box = svg.getBoundingClientRect();
            return first + (((event.clientX - box.left) * width / box.width - LEFT) / (width - LEFT - RIGHT)) * (right - first);
        };
        if (onclick) svg.addEventListener("click", (event) => onclick(stepAt(event)));
        svg.addEventListener("pointermove", (event) => {
            const step = stepAt(event);
            const near = points.reduce((best, point) => (!best || Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best), null);
            if (!near) return;
            hair.setAttribute("x1", x(near[0]));
            hair.setAttribute("x2", x(near[0]));
            hair.setAttribute("visibility", "visible");
            onpick(near);
        });
        svg.addEventListener("pointerleave", () => { hair.setAttribute("visibility", "hidden"); onpick(null); });
        return svg;
    };
})();
