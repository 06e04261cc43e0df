mod math;
mod pairs;
