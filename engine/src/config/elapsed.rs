//! A time since the start of a process, as `H:MM:SS`.

use super::section::Text;
use std::fmt::{self, Display};
use std::time::Duration;

/// At least one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elapsed(pub Duration);

const REMEDY: &str = "must be a time such as \"23:55:00\" (hours, minutes, seconds), at least \"0:00:01\"";

impl Text for Elapsed {
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [hours, minutes, seconds] = parts[..] else { return Err(REMEDY.to_string()) };
        let number = |text: &str| Some(text).filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?.parse::<u32>().ok();
        let below_60 = |text: &str| number(text).filter(|&n| text.len() == 2 && n < 60);
        let total = || {
            let [h, m, s] = [number(hours)?, below_60(minutes)?, below_60(seconds)?].map(u64::from);
            Some(Duration::from_secs(h * 3600 + m * 60 + s)).filter(|total| !total.is_zero())
        };
        total().map(Elapsed).ok_or_else(|| REMEDY.to_string())
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs();
        write!(f, "{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_minutes_and_seconds() {
        for (text, seconds) in [("0:00:01", 1), ("23:55:00", 86_100), ("168:00:30", 604_830), ("00:10:00", 600)] {
            assert_eq!(Elapsed::parse(text), Ok(Elapsed(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!(Elapsed(Duration::from_secs(604_830)).text(), "168:00:30");
        let wrong = ["", "0:00:00", "5", "5:00", "1:2:3", "1:60:00", "1:00:60", "-1:00:00", "+1:00:00", "1:00:00.5"];
        for text in wrong.iter().chain(&["a:00:00", ":00:10", "1:00:00:00", " 1:00:00", "99999999999:00:00"]) {
            assert!(Elapsed::parse(text).is_err(), "{text}");
        }
    }
}
