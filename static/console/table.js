// A table whose rows are updated in place. Rows keep their elements, so that focus and selection are not lost.
//
// In a narrow window, each row is a block with the column's name before each value. The roles are explicit, because browsers drop
// the roles of a table that is not displayed as one.

import { el, setText } from "./dom.js"

export class Table {
  /**
   * `columns` are `{ label, cell, kind, isHeading }`. `cell(item)` returns a text, or a node that is made once for each row; `kind`
   * is `number`, `code`, `codes` for code that may be long and breaks anywhere, `actions`, `time` or none. `key(item)` identifies a
   * row. `empty` is the text of a table without rows, which a view may change later in the table's `empty`, and `widthMinPx` the
   * width from which on it has columns.
   */
  constructor({ label, columns, key, empty, testid, widthMinPx = 600 }) {
    Object.assign(this, { columns, key, rows: new Map() })
    const headings = columns.map(({ label, kind }) =>
      el("th", { scope: "col", role: "columnheader", data: { kind: kind ?? "text" } }, label),
    )
    this.body = el("tbody", { role: "rowgroup" })
    this.table = el(
      "table",
      { class: "table", role: "table", "aria-label": label, hidden: true, data: { testid: testid ?? "table" } },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, headings)),
      this.body,
    )
    this.empty = el("p", { class: "empty", hidden: true }, empty)
    this.node = el("div", { class: "table-frame" }, this.table, this.empty)
    new ResizeObserver(
      ([{ contentRect }]) => (this.table.dataset.layout = contentRect.width < widthMinPx ? "blocks" : "columns"),
    ).observe(this.node)
  }

  fill(items) {
    const before = this.rows
    this.rows = new Map(items.map(item => [this.key(item), before.get(this.key(item)) ?? new Row(this.columns)]))
    for (const item of items) this.rows.get(this.key(item)).show(item)
    for (const [key, row] of before) if (!this.rows.has(key)) row.node.remove()
    this.order([...this.rows.values()].map(row => row.node))
    this.table.hidden = items.length === 0
    this.empty.hidden = items.length > 0
  }

  /** Puts the rows into their order. Only rows at a wrong place are moved, because a moved element loses the focus. */
  order(nodes) {
    for (const [nth, node] of nodes.entries()) {
      if (this.body.children[nth] !== node) this.body.insertBefore(node, this.body.children[nth] ?? null)
    }
  }
}

class Row {
  constructor(columns) {
    this.columns = columns
    this.cells = columns.map(({ label, kind, isHeading }) =>
      el(isHeading ? "th" : "td", {
        scope: isHeading ? "row" : null,
        role: isHeading ? "rowheader" : "cell",
        data: { label, kind: kind ?? "text" },
      }),
    )
    this.node = el("tr", { role: "row", data: { testid: "row" } }, this.cells)
  }

  show(item) {
    for (const [nth, cell] of this.cells.entries()) {
      const content = this.columns[nth].cell(item, cell.firstElementChild)
      if (!(content instanceof Node)) setText(cell, content)
      else if (cell.firstChild !== content) cell.replaceChildren(content)
    }
  }
}
