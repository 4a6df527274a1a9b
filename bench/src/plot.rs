//! A plot with logarithmic axes, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// A line of the plot.
pub(crate) struct Series {
    pub(crate) label: String,
    pub(crate) colour: &'static str,
    /// SVG's `stroke-dasharray`; empty for a whole line.
    pub(crate) dash: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot.
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) series: Vec<Series>,
}

/// The part of an axis that is shown, in powers of ten.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let logs = values.filter(|value| *value > 0.0).map(f64::log10);
        let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), log| {
            (low.min(log), high.max(log))
        });
        if low > high {
            return Self { low: 0.0, high: 1.0 };
        }
        Self { low: low - 0.1, high: (high + 0.1).max(low + 0.5) }
    }

    /// Where a value lies, from 0 to 1.
    fn place(self, value: f64) -> f64 {
        (value.max(1e-9).log10() - self.low) / (self.high - self.low)
    }

    /// 1, 2 and 5 times the powers of ten that are shown.
    fn ticks(self) -> Vec<f64> {
        let mut ticks = Vec::new();
        let mut power = self.low.floor();
        while power <= self.high {
            let base = 10_f64.powf(power);
            ticks.extend([1.0, 2.0, 5.0].map(|times| times * base));
            power += 1.0;
        }
        ticks.retain(|tick| (0.0..=1.0).contains(&self.place(*tick)));
        ticks
    }
}

impl Plot {
    /// The plot as SVG.
    pub(crate) fn draw(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        let (across, up) = (Axis::of(points().map(|p| p.0)), Axis::of(points().map(|p| p.1)));
        let x = |value: f64| LEFT + across.place(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - up.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let mut text = |at: (f64, f64), anchor: &str, size: u32, text: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{text}</text>",
                at.0, at.1
            );
        };
        text((LEFT, 24.0), "start", 15, self.title);
        text((f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 12.0), "middle", 12, self.x);
        text((LEFT, TOP - 4.0), "start", 11, self.y);
        let mut lines = String::new();
        for tick in across.ticks() {
            text((x(tick), HEIGHT - BOTTOM + 16.0), "middle", 11, &label(tick));
            line(&mut lines, (x(tick), TOP), (x(tick), HEIGHT - BOTTOM), "#dddddd");
        }
        for tick in up.ticks() {
            text((LEFT - 6.0, y(tick) + 4.0), "end", 11, &label(tick));
            line(&mut lines, (LEFT, y(tick)), (WIDTH - RIGHT, y(tick)), "#dddddd");
        }
        let mut row = TOP + 10.0;
        for series in self.series.iter().filter(|series| !series.points.is_empty()) {
            text((WIDTH - RIGHT + 40.0, row + 4.0), "start", 12, &series.label);
            let (colour, dash) = (series.colour, series.dash);
            let style = format!("stroke=\"{colour}\" stroke-dasharray=\"{dash}\" fill=\"none\"");
            let from = WIDTH - RIGHT + 8.0;
            let _ =
                writeln!(lines, "<path d=\"M{from:.1} {row:.1}h26\" {style} stroke-width=\"2\"/>");
            let path: Vec<String> =
                series.points.iter().map(|p| format!("{:.1} {:.1}", x(p.0), y(p.1))).collect();
            let _ = writeln!(lines, "<path d=\"M{}\" {style} stroke-width=\"2\"/>", path.join("L"));
            for point in &series.points {
                let _ = writeln!(
                    lines,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                    x(point.0),
                    y(point.1)
                );
            }
            row += 18.0;
        }
        out.push_str(&lines);
        out.push_str("</svg>\n");
        out
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn label(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}K", v / 1e3),
        v => format!("{}", (v * 1e6).round() / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_within_the_frame() {
        let points = vec![(1000.0, 0.1), (20_000.0, 50.0)];
        let series = Series { label: "a".into(), colour: "red", dash: "", points };
        let svg = Plot { title: "t", x: "x", y: "y", series: vec![series] }.draw();
        assert!(svg.contains(">10K</text>") && svg.contains(">20</text>"), "{svg}");
        let empty = Plot { title: "t", x: "x", y: "y", series: vec![] }.draw();
        assert!(empty.ends_with("</svg>\n"));
    }
}
