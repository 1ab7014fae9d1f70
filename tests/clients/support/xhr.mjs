// The part of `XMLHttpRequest` that phoenix.js uses, on top of `fetch`, for pages without a browser.

const UNSENT = 0
const OPENED = 1
const DONE = 4

/** The `XMLHttpRequest` of one page, whose requests end when the page is closed. */
export function pageRequests() {
  const underWay = new Set()

  class XMLHttpRequest {
    constructor() {
      Object.assign(this, { readyState: UNSENT, status: 0, responseText: "", timeout: 0 })
    }

    open(method, url) {
      Object.assign(this, { method, url, headers: {}, readyState: OPENED })
    }

    setRequestHeader(name, value) {
      this.headers[name] = value
    }

    send(body) {
      this.cancel = new AbortController()
      underWay.add(this.cancel)
      if (this.timeout) this.timer = setTimeout(() => this.expire(), this.timeout)
      const { method, url, headers, cancel } = this
      const answered = fetch(url, { method, headers, body: body ?? undefined, signal: cancel.signal })
        .then(async response => ({ status: response.status, responseText: await response.text() }))
      answered.then(answer => this.settle(cancel, answer), () => this.fail(cancel))
    }

    /** As in a browser, an aborted request is first done, and is then reset to its initial state. */
    abort() {
      const { cancel } = this
      if (!underWay.has(cancel)) return
      this.settle(cancel, { status: 0, responseText: "" })
      this.readyState = UNSENT
      cancel.abort()
    }

    expire() {
      if (!this.forget(this.cancel)) return
      this.cancel.abort()
      this.ontimeout?.()
    }

    fail(cancel) {
      if (this.settle(cancel, { status: 0, responseText: "" })) this.onerror?.()
    }

    settle(cancel, answer) {
      if (!this.forget(cancel)) return false
      Object.assign(this, answer, { readyState: DONE })
      this.onreadystatechange?.()
      return true
    }

    forget(cancel) {
      clearTimeout(this.timer)
      return underWay.delete(cancel)
    }
  }

  /** Closes the page: its code no longer receives the results of its requests. */
  const close = () => {
    const cancelled = [...underWay]
    underWay.clear()
    for (const cancel of cancelled) cancel.abort()
  }
  return { XMLHttpRequest, close }
}
