//! Colours for counts.

/// From nothing to the most: dark to bright in even steps, so that it reads the same in grey.
const STOPS: [[f32; 3]; 5] =
    [[8.0, 8.0, 24.0], [84.0, 20.0, 110.0], [188.0, 55.0, 84.0], [246.0, 138.0, 28.0], [252.0, 250.0, 172.0]];

/// The colour of `value` between 0 and `most`.
pub(super) fn heat(value: f32, most: f32) -> [u8; 3] {
    let place = if most > 0.0 { (value / most).clamp(0.0, 1.0) * (STOPS.len() - 1) as f32 } else { 0.0 };
    let below = (place as usize).min(STOPS.len() - 2);
    let part = place - below as f32;
    [0, 1, 2].map(|colour| {
        (STOPS[below][colour] + part * (STOPS[below + 1][colour] - STOPS[below][colour])).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_brighter() {
        let brightness = |[red, green, blue]: [u8; 3]| {
            0.2126 * f32::from(red) + 0.7152 * f32::from(green) + 0.0722 * f32::from(blue)
        };
        let all: Vec<f32> = (0..=100).map(|value| brightness(heat(value as f32, 100.0))).collect();
        assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
        assert_eq!(heat(3.0, 0.0), [8, 8, 24]);
        assert_eq!(heat(7.0, 4.0), [252, 250, 172]);
    }
}
