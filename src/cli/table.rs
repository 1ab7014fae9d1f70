//! Plain text in columns.

use super::log::one_line;

/// Aligns `rows` under `head`, with two spaces between columns. The names of apps come from
/// outside, so control characters are escaped.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let cell = |text: &str| one_line(text).into_owned();
    let mut lines = vec![head.map(cell)];
    lines.extend(rows.iter().map(|row| row.each_ref().map(|text| cell(text))));
    let mut widths = [0; N];
    for line in &lines {
        for (width, text) in widths.iter_mut().zip(line) {
            *width = text.chars().count().max(*width);
        }
    }
    lines.iter().map(|line| spell(line, &widths)).collect()
}

fn spell<const N: usize>(line: &[String; N], widths: &[usize; N]) -> String {
    let cells = line.iter().zip(widths).map(|(text, width)| format!("{text:<width$}"));
    format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows = [["caf\u{e9}".into(), "1".into()], ["a\nb".into(), String::new()]];
        assert_eq!(table(["name", "n"], &rows), "name  n\ncaf\u{e9}  1\na\\nb\n");
    }
}
