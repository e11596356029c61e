//! Charts as SVG: bars for one number of several cases, and lines.
//!
//! A chart has a fixed width and no script. Colours come from the classes `c0` to `c5` of the page.

use std::fmt::Write as _;

// Lengths are in pixels.
const WIDTH: f64 = 900.0;
const LABELS: f64 = 380.0;
const BAR: f64 = 16.0;
const GAP: f64 = 8.0;
const PLOT_HEIGHT: f64 = 260.0;
const MARGIN: f64 = 56.0;
const COLOURS: usize = 6;
const TICKS: usize = 5;

/// A bar, and the value of each turn as a dot.
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub dots: Vec<f64>,
    pub class: usize,
}

pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

/// Escapes text for an element or an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The upper end of an axis: the next of 1, 2 and 5 times a power of ten.
fn axis_end(largest: f64) -> f64 {
    if !largest.is_finite() || largest <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(largest.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    // The last step is above the largest value, but for rounding.
    steps
        .into_iter()
        .find(|end| *end >= largest)
        .unwrap_or(largest)
}

/// A number with as many digits as a label needs.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Horizontal bars from zero. Empty without a bar.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    if bars.is_empty() {
        return String::new();
    }
    let values = bars
        .iter()
        .flat_map(|bar| bar.dots.iter().chain([&bar.value]));
    let end = axis_end(values.copied().fold(0.0, f64::max));
    let scale = (WIDTH - LABELS - 80.0) / end;
    let height = bars.len() as f64 * (BAR + GAP) + GAP;
    let mut svg = open(title, height);
    for (index, bar) in bars.iter().enumerate() {
        let top = GAP + index as f64 * (BAR + GAP);
        let middle = top + BAR / 2.0;
        let _ = write!(
            svg,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <rect class=\"c{}\" x=\"{LABELS}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{} {}</text>",
            LABELS - 8.0,
            middle + 4.0,
            escape(&bar.label),
            bar.class % COLOURS,
            bar.value.max(0.0) * scale,
            WIDTH - 72.0,
            middle + 4.0,
            number(bar.value),
            escape(unit),
        );
        for dot in &bar.dots {
            let x = LABELS + dot.max(0.0) * scale;
            let _ = write!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"2.5\"><title>{}</title></circle>",
                number(*dot)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Lines in one plot, whose vertical axis begins at zero. Empty without a point.
pub fn lines(title: &str, horizontal: &str, vertical: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    if points().next().is_none() {
        return String::new();
    }
    let left = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let right = points()
        .map(|point| point.0)
        .fold(f64::NEG_INFINITY, f64::max);
    let end = axis_end(points().map(|point| point.1).fold(0.0, f64::max));
    let width = WIDTH - 2.0 * MARGIN;
    let x = |value: f64| MARGIN + (value - left) / (right - left).max(1e-9) * width;
    let y = |value: f64| 12.0 + (1.0 - value.max(0.0) / end) * PLOT_HEIGHT;
    let height = PLOT_HEIGHT + MARGIN + 18.0 * lines.len() as f64;
    let mut svg = open(title, height);
    for tick in 0..=TICKS {
        let part = tick as f64 / TICKS as f64;
        let (value, at) = (end * part, left + (right - left) * part);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - MARGIN,
            MARGIN - 6.0,
            y(value) + 4.0,
            number(value),
            x(at),
            PLOT_HEIGHT + 28.0,
            number(at),
            y = y(value),
        );
    }
    let _ = write!(
        svg,
        "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{} → {}</text>",
        WIDTH - MARGIN,
        PLOT_HEIGHT + 44.0,
        escape(horizontal),
        escape(vertical)
    );
    for (index, line) in lines.iter().enumerate() {
        let class = index % COLOURS;
        let path: Vec<String> = line
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
            .collect();
        let top = PLOT_HEIGHT + MARGIN + 18.0 * index as f64;
        let _ = write!(
            svg,
            "<polyline class=\"s{class}\" points=\"{}\"/>\
             <rect class=\"c{class}\" x=\"{MARGIN}\" y=\"{:.1}\" width=\"10\" height=\"10\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            path.join(" "),
            top - 1.0,
            MARGIN + 16.0,
            top + 8.0,
            escape(&line.label)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         width=\"{WIDTH}\" height=\"{height:.0}\"><title>{}</title>",
        escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64) -> Bar {
        Bar {
            label: label.to_owned(),
            value,
            dots: vec![value],
            class: 0,
        }
    }

    /// The value of an attribute of each element with this name.
    fn attributes(svg: &str, element: &str, name: &str) -> Vec<f64> {
        let begin = format!("<{element} ");
        let attribute = format!(" {name}=\"");
        svg.split(&begin)
            .skip(1)
            .map(|rest| {
                let rest = rest.split('>').next().unwrap();
                let value = rest.split(&attribute).nth(1).unwrap();
                value.split('"').next().unwrap().parse().unwrap()
            })
            .collect()
    }

    #[test]
    fn axis_ends_at_a_round_number_above_the_largest_value() {
        for (largest, end) in [
            (0.7, 1.0),
            (1.0, 1.0),
            (1.1, 2.0),
            (4.9, 5.0),
            (51.0, 100.0),
        ] {
            assert!((axis_end(largest) - end).abs() < 1e-9, "{largest}");
        }
        assert_eq!(axis_end(0.0), 1.0);
        assert_eq!(axis_end(f64::NAN), 1.0);
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let svg = bars("t", "ms", &[bar("a", 50.0), bar("b", 100.0), bar("c", 0.0)]);
        let widths = attributes(&svg, "rect", "width");
        assert_eq!(widths.len(), 3);
        assert!((widths[1] / widths[0] - 2.0).abs() < 0.01, "{widths:?}");
        assert_eq!(widths[2], 0.0);
        assert!(widths[1] + LABELS <= WIDTH);
        assert_eq!(svg.matches("<circle").count(), 3);
    }

    #[test]
    fn text_of_a_case_cannot_become_markup() {
        let svg = bars("<t>", "ms", &[bar("a <script> & \"b\"", 1.0)]);
        assert!(!svg.contains("<script>"), "{svg}");
        assert!(
            svg.contains("a &lt;script&gt; &amp; &quot;b&quot;"),
            "{svg}"
        );
    }

    #[test]
    fn lines_stay_within_the_plot() {
        let line = |label: &str, points: &[(f64, f64)]| Line {
            label: label.to_owned(),
            points: points.to_vec(),
        };
        let svg = lines(
            "t",
            "s",
            "MiB",
            &[
                line("a", &[(0.0, 1.0), (10.0, 40.0)]),
                line("b", &[(5.0, 20.0)]),
            ],
        );
        assert_eq!(svg.matches("<polyline").count(), 2);
        let points = svg.split("points=\"").nth(1).unwrap();
        let points = points.split('"').next().unwrap();
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((MARGIN..=WIDTH - MARGIN).contains(&x), "{x}");
            assert!((0.0..=PLOT_HEIGHT + 12.0).contains(&y), "{y}");
        }
    }

    #[test]
    fn chart_without_data_is_empty() {
        assert_eq!(bars("t", "ms", &[]), "");
        let line = Line {
            label: "a".to_owned(),
            points: Vec::new(),
        };
        assert_eq!(lines("t", "s", "ms", &[line]), "");
    }
}
