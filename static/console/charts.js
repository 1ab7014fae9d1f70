// Charts by uPlot, in the colours of the style sheet, with a legend that shows the numbers under the pointer.

import uPlot from "./vendor/uplot/uPlot.esm.js"
import { el, setText } from "./dom.js"
import { day, hourAndMinute, period, time } from "./format.js"

const HEIGHT_PX = 180
const AXIS_PX = 52
/** The least height of a scale, so that a chart of zeros has whole numbers at its axis. */
const TOP_MIN = 5
const DAY_S = 86_400
const MINUTE_S = 60
const dark = matchMedia("(prefers-color-scheme: dark)")

export class Chart {
  /**
   * `series` are `{ label, format }`, at most three. `kind` is `line` or `bars`; bars begin at their time. With `by`, the times are
   * hours, days or months of UTC; without, they are moments in the time zone of the browser. The chart ends when `signal` aborts.
   */
  constructor({ label, series, kind = "line", axis, by, signal }) {
    Object.assign(this, { label, series, kind, axis, by, data: [[], ...series.map(() => [])], plot: null })
    this.values = series.map(() => el("span", { class: "legend-value" }, "–"))
    this.when = el("span", { class: "legend-when" })
    const entries = series.map(({ label }, nth) =>
      el(
        "span",
        { class: "legend-entry" },
        el("span", { class: `swatch swatch-${nth + 1}`, "aria-hidden": "true" }),
        el("span", {}, label),
        this.values[nth],
      ),
    )
    this.place = el("div", { class: "chart-plot", role: "img" })
    this.node = el(
      "figure",
      { class: "chart", data: { testid: "chart" } },
      el("figcaption", { class: "chart-head" }, el("span", { class: "chart-title" }, label), this.when),
      el("div", { class: "legend" }, entries),
      this.place,
    )
    this.follow(signal)
  }

  /** Shows values over times, in seconds; a value may be null. */
  show(times, ...values) {
    this.data = [times, ...values]
    this.plot?.setData(this.data)
    this.point(null)
    this.place.setAttribute("aria-label", this.words())
  }

  follow(signal) {
    const sized = new ResizeObserver(() => this.draw())
    sized.observe(this.place)
    dark.addEventListener("change", () => this.redraw(), { signal })
    signal.addEventListener("abort", () => {
      sized.disconnect()
      this.plot?.destroy()
      this.plot = null
    })
  }

  draw() {
    const width = Math.floor(this.place.clientWidth)
    if (width === 0) return
    if (this.plot) this.plot.setSize({ width, height: HEIGHT_PX })
    else this.plot = new uPlot(this.options(width), this.data, this.place)
  }

  redraw() {
    this.plot?.destroy()
    this.plot = null
    this.draw()
  }

  options(width) {
    const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()
    const font = `12px ${colour("--sans")}`
    const timeZone = this.by && "UTC"
    const axis = { stroke: colour("--muted"), font, ticks: { show: false }, grid: { stroke: colour("--line"), width: 1 } }
    return {
      width,
      height: HEIGHT_PX,
      padding: [8, 20, 0, 0],
      legend: { show: false },
      ...(timeZone && { tzDate: at => uPlot.tzDate(new Date(at * 1000), timeZone) }),
      cursor: { y: false, drag: { x: false, y: false }, points: { show: this.kind === "line", size: 6 } },
      scales: {
        x: { time: true, range: (_, from, to) => this.range(from, to) },
        y: { range: (_, __, max) => [0, Math.max(max ?? 0, TOP_MIN) * 1.1] },
      },
      axes: [
        {
          ...axis,
          size: 28,
          space: 64,
          values: (_, splits, __, ___, step) => splits.map(at => written(at * 1000, step, timeZone)),
        },
        { ...axis, size: AXIS_PX, space: 36, values: (_, splits) => splits.map(value => this.axis(value)) },
      ],
      series: [{}, ...this.series.map((_, nth) => this.style(colour(`--chart-${nth + 1}`), nth))],
      hooks: { setCursor: [plot => this.point(plot.cursor.idx)] },
    }
  }

  style(stroke, nth) {
    if (this.kind === "bars")
      return { stroke, fill: stroke, width: 0, paths: uPlot.paths.bars({ size: [0.7, 40], align: 1 }), points: { show: false } }
    // A line needs two values; a single one is a point.
    const points = { show: () => this.data[0].length === 1, size: 6, fill: stroke }
    return { stroke, width: 1.75, fill: nth === 0 ? `${stroke}1f` : undefined, points }
  }

  /** The times from the left end to the right one, in seconds. Where there are too few values for a range, it is a minute. */
  range(from, to) {
    if (from === null || from === undefined) return [Date.now() / 1000 - MINUTE_S, Date.now() / 1000]
    if (this.kind === "bars") return [from, to + this.step()]
    return from < to ? [from, to] : [to - MINUTE_S, to + 1]
  }

  /** The time that one bar stands for, in seconds. */
  step() {
    const [times] = this.data
    return times.length > 1 ? times[1] - times[0] : 3600
  }

  /** Shows the values at an index in the legend, or the latest ones. */
  point(index) {
    const [times, ...values] = this.data
    const isPointed = index !== null && index !== undefined
    const at = isPointed ? index : times.length - 1
    for (const [nth, { format }] of this.series.entries()) setText(this.values[nth], format(values[nth][at] ?? null))
    if (times.length === 0) setText(this.when, "waiting for the first figures")
    else setText(this.when, isPointed ? this.moment(times[at] * 1000) : "")
  }

  moment(ms) {
    return this.by ? period(ms, this.by) : time(ms)
  }

  /** The description of the chart for screen readers. */
  words() {
    const [, ...values] = this.data
    const said = this.series.map(({ label, format }, nth) => {
      const known = values[nth].filter(value => value !== null)
      if (known.length === 0) return `${label}: no data`
      return `${label}: latest ${format(known.at(-1))}, highest ${format(Math.max(...known))}`
    })
    return `${this.label}. ${said.join(". ")}.`
  }
}

/** A time at the axis, as short as the step between two of them permits. */
function written(ms, stepS, timeZone) {
  if (stepS >= DAY_S) return day(ms, timeZone)
  return stepS >= MINUTE_S ? hourAndMinute(ms, timeZone) : time(ms)
}
