//! Packed sampling records: what `Op::Sample` and `Op::UpdateSampler` read, as words of an uploaded buffer.

/// One row of `Op::Sample`'s `rows` tensor, uploaded each step: 16 words.
///
/// Word: 0 slot (i32, -1 is padding: nothing is read or written) · 1 flags · 2 temperature · 3 top_k · 4 top_p ·
/// 5 min_p · 6 presence · 7 frequency · 8 repetition · 9, 10 seed low, high · 11 position of the drawn token ·
/// 12 to 15 zero. Floats as their bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRow {
    pub slot: i32,
    pub flags: u32,
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub presence: f32,
    pub frequency: f32,
    pub repetition: f32,
    pub seed: u64,
    pub position: u32,
}

impl SampleRow {
    /// Words a row takes.
    pub const WORDS: usize = 16;
    /// Take the most likely token; no draw.
    pub const GREEDY: u32 = 1;
    /// Penalties apply; the slot keeps counts of what it generates.
    pub const PENALTIES: u32 = 2;
    /// The slot has a bias list, an allowed list or bad words.
    pub const RULES: u32 = 4;
    /// The slot's stop ids are masked (min_tokens not reached).
    pub const MASK_STOPS: u32 = 8;
    /// The row's bits in `Op::Sample`'s `mask` apply.
    pub const MASKED: u32 = 16;

    /// A row that samples nothing.
    pub const PADDING: SampleRow = SampleRow {
        slot: -1,
        flags: Self::GREEDY,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        presence: 0.0,
        frequency: 0.0,
        repetition: 1.0,
        seed: 0,
        position: 0,
    };

    /// Writes the row as 16 words.
    ///
    /// # Panics
    /// If `into` is not 16 words long.
    pub fn write(&self, into: &mut [u32]) {
        into.copy_from_slice(&[
            self.slot as u32,
            self.flags,
            self.temperature.to_bits(),
            self.top_k,
            self.top_p.to_bits(),
            self.min_p.to_bits(),
            self.presence.to_bits(),
            self.frequency.to_bits(),
            self.repetition.to_bits(),
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.position,
            0,
            0,
            0,
            0,
        ]);
    }

    /// Reads what [`SampleRow::write`] wrote.
    ///
    /// # Panics
    /// If `from` is shorter than 12 words.
    pub fn read(from: &[u32]) -> Self {
        SampleRow {
            slot: from[0] as i32,
            flags: from[1],
            temperature: f32::from_bits(from[2]),
            top_k: from[3],
            top_p: f32::from_bits(from[4]),
            min_p: f32::from_bits(from[5]),
            presence: f32::from_bits(from[6]),
            frequency: f32::from_bits(from[7]),
            repetition: f32::from_bits(from[8]),
            seed: u64::from(from[9]) | u64::from(from[10]) << 32,
            position: from[11],
        }
    }
}

/// One record of `Op::UpdateSampler`: everything a slot must forget and learn when a request enters it.
///
/// Words: slot · prompt length · output length · bias count · allowed count ([`Self::NO_ALLOWED`] = all ids) ·
/// stop count · bad-word count · bad-word words · then prompt ids, output ids, bias ids, bias values (f32 bits),
/// allowed ids, stop ids, and per bad word its length and ids. Records follow each other; a record whose slot
/// is [`Self::END`] ends the list. Prompt ids are given only when the repetition penalty needs them, output ids
/// (tokens generated before a preemption) only when penalties or bad words do.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotRecord<'a> {
    pub slot: u32,
    pub prompt: &'a [u32],
    pub output: &'a [u32],
    pub bias: &'a [(u32, f32)],
    pub allowed: Option<&'a [u32]>,
    /// Ids masked while `SampleRow::MASK_STOPS` is set.
    pub stops: &'a [u32],
    pub bad_words: &'a [Vec<u32>],
}

impl SlotRecord<'_> {
    /// Words of the fixed head.
    pub const HEAD: usize = 8;
    /// In place of the allowed count: every id is allowed.
    pub const NO_ALLOWED: u32 = u32::MAX;
    /// In place of a slot: no more records.
    pub const END: u32 = u32::MAX;

    /// Appends the record's words.
    pub fn write(&self, into: &mut Vec<u32>) {
        let bad_words = self.bad_words.iter().map(|w| w.len() as u32 + 1).sum();
        into.extend([
            self.slot,
            self.prompt.len() as u32,
            self.output.len() as u32,
            self.bias.len() as u32,
            self.allowed.map_or(Self::NO_ALLOWED, |a| a.len() as u32),
            self.stops.len() as u32,
            self.bad_words.len() as u32,
            bad_words,
        ]);
        into.extend(self.prompt);
        into.extend(self.output);
        into.extend(self.bias.iter().map(|b| b.0));
        into.extend(self.bias.iter().map(|b| b.1.to_bits()));
        into.extend(self.allowed.unwrap_or_default());
        into.extend(self.stops);
        for word in self.bad_words {
            into.push(word.len() as u32);
            into.extend(word);
        }
    }
}
