//! What experts chose: how many took each token, and which tokens each took.

use nucleus_ir::DType;
use nucleus_runtime::HostTensor;

use super::canvas::LETTER;
use super::grid::table;
use super::heat::heat;
use super::{Picture, PictureError};

/// The share of its light that a token keeps where an expert did not take it.
const DIMMED: f32 = 0.2;

const GAP: usize = 6;

/// The choices of a run: at every recorded time, for every layer with experts, the token in each slot.
#[derive(Clone, Debug)]
pub struct RoutingTrace {
    /// Rows of tokens.
    pub rows: usize,
    /// Tokens in a row.
    pub columns: usize,
    /// What the layers are called.
    pub layers: Vec<String>,
    /// Per time what it is called, and per layer `slot_token` i32 `[B, E, C]`: the token of image b in slot c of expert e.
    pub times: Vec<(String, Vec<HostTensor>)>,
}

/// For every token of an image, how many experts took it. `slot_token` is i32 `[B, E, C]`.
///
/// # Errors
/// The tensor is of another type, there is no such image, or a slot names no token.
pub fn experts_per_token(
    slot_token: &HostTensor,
    image: usize,
    tokens: usize,
) -> Result<Vec<u32>, PictureError> {
    let mut counts = vec![0; tokens];
    for_each_slot(slot_token, image, tokens, |_, token| counts[token] += 1)?;
    Ok(counts)
}

/// For every expert, which tokens of an image it took. `slot_token` is i32 `[B, E, C]`.
///
/// # Errors
/// As for [`experts_per_token`].
pub fn tokens_of_experts(
    slot_token: &HostTensor,
    image: usize,
    tokens: usize,
) -> Result<Vec<Vec<bool>>, PictureError> {
    let experts = slot_token.shape().get(1).copied().unwrap_or(0);
    let mut taken = vec![vec![false; tokens]; experts];
    for_each_slot(slot_token, image, tokens, |expert, token| taken[expert][token] = true)?;
    Ok(taken)
}

/// `slot_token` i32 `[B, E, C]` of every layer, from which experts took which tokens: f32 `[B, L, S, E]`, 1 where one did. Layers may
/// differ in C; the tokens of an expert are in ascending order.
///
/// # Errors
/// The tensor is of another type, or the experts of a layer took different numbers of tokens.
pub fn layers_of_choice(chosen: &HostTensor) -> Result<Vec<HostTensor>, PictureError> {
    let wanted = |wanted: &str| PictureError::Tensor {
        what: "the choice of experts",
        given: format!("{chosen:?}"),
        wanted: wanted.to_owned(),
    };
    let (&[images, layers, tokens, experts], DType::F32) = (chosen.shape(), chosen.dtype()) else {
        return Err(wanted("f32[images, layers, tokens, experts]"));
    };
    let values = chosen.as_f32()?;
    let took = |image: usize, layer: usize, expert: usize| {
        let first = (image * layers + layer) * tokens;
        (0..tokens).filter(move |token| values[(first + token) * experts + expert] > 0.5)
    };
    let mut result = Vec::new();
    for layer in 0..layers {
        let mut slots = Vec::new();
        for image in 0..images {
            for expert in 0..experts {
                slots.extend(took(image, layer, expert).map(|token| token as i32));
            }
        }
        let capacity = slots.len() / (images * experts).max(1);
        let even = |image: usize, expert: usize| took(image, layer, expert).count() == capacity;
        if !(0..images).all(|image| (0..experts).all(|expert| even(image, expert))) {
            return Err(wanted("of experts that each took equally many tokens"));
        }
        result.push(HostTensor::from_i32(&[images, experts, capacity], &slots)?);
    }
    Ok(result)
}

fn for_each_slot(
    slot_token: &HostTensor,
    image: usize,
    tokens: usize,
    mut visit: impl FnMut(usize, usize),
) -> Result<(), PictureError> {
    let &[images, experts, capacity] = slot_token.shape() else { return Err(not_slots(slot_token)) };
    if slot_token.dtype() != DType::I32 {
        return Err(not_slots(slot_token));
    }
    if image >= images {
        return Err(PictureError::Index { what: "image", index: image, count: images });
    }
    let slots = &slot_token.as_i32()?[image * experts * capacity..][..experts * capacity];
    for (position, &token) in slots.iter().enumerate() {
        let (expert, slot) = (position / capacity, position % capacity);
        match usize::try_from(token) {
            Ok(token) if token < tokens => visit(expert, token),
            _ => return Err(PictureError::Token { expert, slot, token, tokens }),
        }
    }
    Ok(())
}

fn not_slots(tensor: &HostTensor) -> PictureError {
    PictureError::Tensor {
        what: "the tensor of slots",
        given: format!("{tensor:?}"),
        wanted: "i32[images, experts, capacity]".to_owned(),
    }
}

impl RoutingTrace {
    /// How many experts took each token of an image: a row for each layer, a column for each time, one colour scale for all, which is
    /// drawn below. A token is a square of `enlarge` pixels.
    ///
    /// # Errors
    /// There is no such image, a tensor does not fit, or the picture would be too large.
    pub fn allocation(&self, image: usize, enlarge: usize) -> Result<Picture, PictureError> {
        let mut counts = Vec::new();
        for layer in 0..self.layers.len() {
            let mut row = Vec::new();
            for time in 0..self.times.len() {
                row.push(experts_per_token(self.slots(time, layer)?, image, self.tokens()?)?);
            }
            counts.push(row);
        }
        let most = counts.iter().flatten().flatten().copied().max().unwrap_or(0);
        let cell = |counts: &Vec<u32>| self.cell(enlarge, |token| heat(counts[token] as f32, most as f32));
        let cells = counts
            .iter()
            .map(|row| row.iter().map(cell).collect::<Result<Vec<_>, _>>())
            .collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<&[Picture]> = cells.iter().map(Vec::as_slice).collect();
        let times: Vec<String> = self.times.iter().map(|(name, _)| name.clone()).collect();
        let map = table(&rows, &self.layers, &times, GAP)?;
        let scale = scale(most)?;
        table(&[&[map], &[scale]], &[], &[], 0)
    }

    /// Which tokens of an image each expert of a layer took: a row for each time, a column for each expert. Where `pictures` has one for a
    /// time (of any size), tokens are its parts, bright where they were taken; else they are white and dark.
    ///
    /// # Errors
    /// There is no such layer or image, a tensor does not fit, or the picture would be too large.
    pub fn experts(
        &self,
        layer: usize,
        image: usize,
        enlarge: usize,
        pictures: &[Picture],
    ) -> Result<Picture, PictureError> {
        let mut cells = Vec::new();
        for time in 0..self.times.len() {
            let colours = pictures.get(time).map(|picture| self.token_colours(picture));
            let taken = tokens_of_experts(self.slots(time, layer)?, image, self.tokens()?)?;
            let cell = |taken: &Vec<bool>| {
                self.cell(enlarge, |token| {
                    let colour = colours.as_ref().map_or([235; 3], |colours| colours[token]);
                    if taken[token] { colour } else { colour.map(|part| (f32::from(part) * DIMMED) as u8) }
                })
            };
            cells.push(taken.iter().map(cell).collect::<Result<Vec<_>, _>>()?);
        }
        let rows: Vec<&[Picture]> = cells.iter().map(Vec::as_slice).collect();
        let times: Vec<String> = self.times.iter().map(|(name, _)| name.clone()).collect();
        let experts = cells.first().map_or(0, Vec::len);
        let experts: Vec<String> = (0..experts).map(|expert| expert.to_string()).collect();
        table(&rows, &times, &experts, GAP)
    }

    fn tokens(&self) -> Result<usize, PictureError> {
        let tokens = self.rows.checked_mul(self.columns).filter(|&tokens| tokens <= i32::MAX as usize);
        tokens.ok_or(PictureError::TooLarge { width: self.columns, height: self.rows })
    }

    fn slots(&self, time: usize, layer: usize) -> Result<&HostTensor, PictureError> {
        let missing = |what, index, count| PictureError::Index { what, index, count };
        let (_, layers) = self.times.get(time).ok_or_else(|| missing("time", time, self.times.len()))?;
        layers.get(layer).ok_or_else(|| missing("layer", layer, layers.len()))
    }

    fn cell(&self, enlarge: usize, colour: impl Fn(usize) -> [u8; 3]) -> Result<Picture, PictureError> {
        let mut cell = Picture::new(self.columns, self.rows, [0; 3])?;
        for token in 0..self.rows * self.columns {
            cell.set(token % self.columns, token / self.columns, colour(token));
        }
        cell.enlarged(enlarge.max(1))
    }

    /// The mean colour of each token's part of a picture.
    fn token_colours(&self, picture: &Picture) -> Vec<[u8; 3]> {
        let part = |index: usize, count: usize, size: usize| {
            let start = index * size / count;
            start..((index + 1) * size / count).max(start + 1)
        };
        let mean = |token: usize| {
            let mut sums = [0u64; 4];
            for y in part(token / self.columns, self.rows, picture.height()) {
                for x in part(token % self.columns, self.columns, picture.width()) {
                    let Some(colour) = picture.pixel(x, y) else { continue };
                    (0..3).for_each(|index| sums[index] += u64::from(colour[index]));
                    sums[3] += 1;
                }
            }
            [0, 1, 2].map(|index| (sums[index] / sums[3].max(1)) as u8)
        };
        (0..self.rows * self.columns).map(mean).collect()
    }
}

/// A square of its colour for every count, with the number beside it.
fn scale(most: u32) -> Result<Picture, PictureError> {
    // Two dozen fit a line; beyond that every few counts have one.
    let pace = (most / 24 + 1) as usize;
    let mut squares = Vec::new();
    for count in (0..=most).step_by(pace) {
        let label = count.to_string();
        let mut square = Picture::new(2 * LETTER + label.len() * LETTER, LETTER + 4, [255; 3])?;
        square.place(0, 0, &Picture::new(LETTER + 4, LETTER + 4, heat(count as f32, most as f32))?);
        square.write_line(2 * LETTER, 2, &label, [40; 3]);
        squares.push(square);
    }
    table(&[&squares], &["experts per token".to_owned()], &[], GAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images, two experts with two slots each, over 2 × 2 tokens.
    fn slots(values: [i32; 8]) -> HostTensor {
        HostTensor::from_i32(&[2, 2, 2], &values).unwrap()
    }

    fn trace() -> RoutingTrace {
        let layers = vec![slots([0, 1, 0, 3, 2, 3, 2, 3]), slots([0, 0, 0, 0, 1, 1, 1, 1])];
        RoutingTrace {
            rows: 2,
            columns: 2,
            layers: vec!["a".into(), "b".into()],
            times: vec![("t=1".into(), layers.clone()), ("t=0".into(), layers)],
        }
    }

    #[test]
    fn choices_are_counted_per_token_and_listed_per_expert() {
        let slots = slots([0, 1, 0, 3, 2, 3, 2, 3]);
        assert_eq!(experts_per_token(&slots, 0, 4).unwrap(), [2, 1, 0, 1]);
        assert_eq!(experts_per_token(&slots, 1, 4).unwrap(), [0, 0, 2, 2]);
        let taken = tokens_of_experts(&slots, 0, 4).unwrap();
        assert_eq!(taken, [[true, true, false, false], [true, false, false, true]]);
    }

    #[test]
    fn layers_may_differ_in_capacity() {
        // One image, two layers, three tokens, two experts: experts take one token each, then two.
        let chosen = [[[1., 0.], [0., 0.], [0., 1.]], [[1., 1.], [1., 0.], [0., 1.]]];
        let values: Vec<f32> = chosen.iter().flatten().flatten().copied().collect();
        let layers = layers_of_choice(&HostTensor::from_f32(&[1, 2, 3, 2], &values).unwrap()).unwrap();
        assert_eq!(layers[0], HostTensor::from_i32(&[1, 2, 1], &[0, 2]).unwrap());
        assert_eq!(layers[1], HostTensor::from_i32(&[1, 2, 2], &[0, 1, 0, 2]).unwrap());

        let uneven = HostTensor::from_f32(&[1, 1, 2, 2], &[1., 1., 1., 0.]).unwrap();
        let error = layers_of_choice(&uneven).unwrap_err().to_string();
        assert!(error.ends_with("it must be of experts that each took equally many tokens"), "{error}");
    }

    #[test]
    fn what_is_no_choice_is_refused() {
        let error = |slots: &HostTensor, image| experts_per_token(slots, image, 4).unwrap_err().to_string();
        assert_eq!(error(&trace().times[0].1[0], 2), "there is no image 2: the trace has 2");
        let outside = slots([0, 1, 0, 4, 0, 0, 0, -1]);
        assert_eq!(error(&outside, 0), "slot 1 of expert 1 holds token 4, and there are 4 tokens");
        assert_eq!(error(&outside, 1), "slot 1 of expert 1 holds token -1, and there are 4 tokens");
        let floats = HostTensor::from_f32(&[1, 1, 1], &[0.0]).unwrap();
        assert!(error(&floats, 0).starts_with("the tensor of slots is f32[1, 1, 1]"));
        assert_eq!(
            trace().experts(2, 0, 1, &[]).unwrap_err().to_string(),
            "there is no layer 2: the trace has 2"
        );
        let wide = RoutingTrace { rows: usize::MAX, ..trace() };
        assert!(matches!(wide.allocation(0, 1), Err(PictureError::TooLarge { .. })));
    }

    #[test]
    fn allocation_has_a_row_per_layer_and_a_column_per_time() {
        let picture = trace().allocation(0, 10).unwrap();
        // The labels `a` and `b` and a gap to the left, `t=1` above; a cell has 20 pixels, its column 24 for the label.
        let (left, top) = (GAP + LETTER + GAP, GAP + LETTER + 2 + GAP / 2);
        for (layer, counts) in [[2, 1, 0, 1], [4, 0, 0, 0]].into_iter().enumerate() {
            for time in 0..2 {
                for (token, count) in counts.into_iter().enumerate() {
                    let x = left + time * (24 + GAP) + token % 2 * 10 + 5;
                    let y = top + layer * (20 + GAP) + token / 2 * 10 + 5;
                    assert_eq!(
                        picture.pixel(x, y),
                        Some(heat(count as f32, 4.0)),
                        "layer {layer}, token {token}"
                    );
                }
            }
        }
    }

    #[test]
    fn experts_light_what_they_took() {
        // A picture of two pixels per token.
        let pixels: Vec<u8> = (0..16).flat_map(|i| [100 + i, 50, 200]).collect();
        let picture = Picture::from_pixels(4, 4, pixels).unwrap();
        let trace = trace();
        assert_eq!(trace.token_colours(&picture)[3], [100 + (10 + 11 + 14 + 15) / 4, 50, 200]);
        let map = trace.experts(0, 0, 10, std::slice::from_ref(&picture)).unwrap();
        let (left, top) = (GAP + 3 * LETTER + GAP, GAP + LETTER + 2 + GAP / 2);
        let at = |expert: usize, time: usize, token: usize| {
            map.pixel(left + expert * 26 + token % 2 * 10 + 5, top + time * 26 + token / 2 * 10 + 5)
        };
        let colour = trace.token_colours(&picture)[0];
        assert_eq!((at(0, 0, 0), at(1, 0, 0)), (Some(colour), Some(colour)));
        let dimmed = trace.token_colours(&picture)[2].map(|part| (f32::from(part) * DIMMED) as u8);
        assert_eq!(at(0, 0, 2), Some(dimmed));
        // The second time has no picture.
        assert_eq!((at(1, 1, 3), at(1, 1, 1)), (Some([235; 3]), Some([47; 3])));
    }
}
