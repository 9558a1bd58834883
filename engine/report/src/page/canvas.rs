//! The canvas of charts: SVG that scales with the page and takes its colours from the style sheet.

use super::escape;
use crate::document::{Tone, number};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Units per pixel. Plotters rounds coordinates to whole units; with ten per pixel lines are smooth at any size.
pub const UNIT: f64 = 10.0;
/// Size of text in pixels, on a chart that is shown at its own width.
const TEXT: f64 = 14.0;
/// Plotters writes the height of a font as its size.
const HEIGHT: f64 = 1.24;

/// Colours of a drawing. They are placeholders, which the style sheet replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    Tone(Tone),
    /// Text of labels.
    Label,
    /// Grid lines.
    Grid,
    /// Text on boxes of the tone [`Tone::Forward`], and of [`Tone::Backward`].
    OnForward,
    OnBackward,
}

impl Ink {
    /// All but the tones, with their names in the style sheet.
    pub const OTHERS: [(Ink, &'static str); 4] =
        [(Ink::Label, "label"), (Ink::Grid, "grid"), (Ink::OnForward, "on-forward"), (Ink::OnBackward, "on-backward")];

    pub fn colour(self) -> RGBColor {
        match self {
            Ink::Tone(tone) => RGBColor(1, 2, 16 + tone as u8),
            Ink::Label => RGBColor(1, 3, 16),
            Ink::Grid => RGBColor(1, 3, 17),
            Ink::OnForward => RGBColor(1, 3, 18),
            Ink::OnBackward => RGBColor(1, 3, 19),
        }
    }

    /// The colour as SVG writes it.
    pub fn hex(self) -> String {
        let RGBColor(r, g, b) = self.colour();
        format!("#{r:02X}{g:02X}{b:02X}")
    }
}

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Horizontal position of a text relative to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Middle,
    Right,
}

/// An area with coordinates in pixels.
pub struct Canvas<'a> {
    pub area: Area<'a>,
}

impl Canvas<'_> {
    pub fn rect(&self, ink: Ink, [left, top, right, bottom]: [f64; 4]) {
        let corners = [(units(left), units(top)), (units(right), units(bottom))];
        self.area.draw(&Rectangle::new(corners, ink.colour().filled())).expect(IN_MEMORY);
    }

    pub fn text(&self, ink: Ink, anchor: Anchor, (x, y): (f64, f64), text: &str) {
        let at = match anchor {
            Anchor::Middle => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        let style = style(ink, TEXT).pos(Pos::new(at, VPos::Center));
        self.area.draw(&Text::new(text.to_string(), (units(x), units(y)), style)).expect(IN_MEMORY);
    }

    /// Grid lines and labels of a time axis from 0 at `left` to `until` seconds at `right`.
    pub fn time_axis(&self, [left, top, right, bottom]: [f64; 4], until: f64) {
        let (step, unit, name) = time_ticks(until);
        let say = |seconds: f64| number::tick(seconds / unit, 1.0);
        for tick in 0..=(until / step + 1e-9) as usize {
            let seconds = tick as f64 * step;
            let x = left + (right - left) * seconds / until;
            self.rect(Ink::Grid, [x, top, x + 1.0, bottom]);
            self.text(Ink::Label, Anchor::Middle, (x, bottom + TEXT), &format!("{} {name}", say(seconds)));
        }
    }
}

/// Ticks of a time axis: seconds between them, seconds of the unit of their labels, and its name.
fn time_ticks(until: f64) -> (f64, f64, &'static str) {
    let (unit, name) = if until >= 2.0 {
        (1.0, "s")
    } else if until >= 2e-3 {
        (1e-3, "ms")
    } else {
        (1e-6, "µs")
    };
    let rough = until / unit / 9.0;
    let ten = 10f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|n| n * ten >= rough).unwrap_or(10.0);
    (nice * ten * unit, unit, name)
}

pub const IN_MEMORY: &str = "drawing into memory cannot fail";

pub fn units(pixels: f64) -> i32 {
    (pixels * UNIT).round() as i32
}

/// Text of this size in pixels.
pub fn style(ink: Ink, pixels: f64) -> TextStyle<'static> {
    let font = ("sans-serif", pixels * HEIGHT * UNIT).into_font();
    TextStyle { color: ink.colour().to_backend_color(), ..font.into() }
}

/// Runs `draw` on a canvas of this width and height in pixels. Returns SVG of this class in the style sheet.
pub fn paint((width, height): (f64, f64), class: &str, name: &str, draw: impl FnOnce(Canvas)) -> String {
    let size = (units(width) as u32, units(height) as u32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(Canvas { area: area.clone() });
        area.present().expect(IN_MEMORY);
    }
    let drawn = svg.split_once('>').expect("it begins with a tag").1;
    let drawn =
        drawn.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "").replace(" font-family=\"sans-serif\"", "");
    let (name, (width, height)) = (escape(name), size);
    format!("<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{name}\">{drawn}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_time_are_round() {
        assert_eq!(time_ticks(12.0), (2.0, 1.0, "s"));
        let (step, unit, name) = time_ticks(0.408);
        assert!((step - 0.05).abs() < 1e-12 && unit == 1e-3 && name == "ms", "{step}");
    }

    #[test]
    fn a_drawing_scales_and_has_a_label() {
        let svg = paint((100.0, 50.0), "curve", "a<b", |canvas| {
            canvas.rect(Ink::Tone(Tone::Forward), [1.0, 2.0, 3.5, 4.0]);
            canvas.text(Ink::Label, Anchor::Right, (0.0, 0.0), "<x>");
        });
        assert!(
            svg.starts_with("<svg class=\"curve\" viewBox=\"0 0 1000 500\" role=\"img\" aria-label=\"a&lt;b\">"),
            "{svg}"
        );
        assert!(svg.contains("<rect x=\"10\" y=\"20\" width=\"25\" height=\"20\" fill=\"#010210\"/>"), "{svg}");
        assert!(
            svg.contains("font-size=\"140\"") && svg.contains("&lt;x&gt;") && svg.trim_end().ends_with("</svg>"),
            "{svg}"
        );
    }
}
